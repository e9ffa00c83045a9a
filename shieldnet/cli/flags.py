"""How the shell says what Python says by arguments: the flags of errors and of reports."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, get_args, get_origin

from typer.models import OptionInfo

if TYPE_CHECKING:
    from shieldnet.reports.report import Report

_OTHER_NAMES = {
    "finetuned": ("guarantee", "{}"),
    "columns": ("label", "a table, whose columns have names"),
    "start": ("guarantee", "finetune --start"),
    "in_all": ("bits_in_all", "{} or --queries-in-all"),
}
"""Arguments of Python that a command has by another name: which of its own, and what to say."""

_LABELED = "{} with labels (--label names their column; an .npz has them as y)"
_IN_PYTHON = re.compile(
    r"\bsn\.(?:Shield|harden)\(|(?<![\w.])(?:outputs=\{|(?:also|drop|extent|micro_batch)=)"
)
_FROM_THE_SHELL = (
    " From the shell: {}let MODEL be package.module:function, which returns the Shield. Or write "
    "the shield into a file, with the kinds and defenses of every head: --shield FILE."
)
_MEASURED = re.compile(r"\bsn\.harden\([^()]*outputs='(\w+)', calibrate=")
_QUOTES = "'\""
_NAMES = re.compile(r"\((\w+(?:, \w+)+)\)")  # such as (height, width)
_VALUE = r"'[^']*'|\"[^\"]*\"|[\w-]+(?:\.\d+)?|\.\.\.|\([^()]*\)|(?=[\s).,;:]|$)"
_ARGUMENT = re.compile(rf"(?<![\w.\-])(?<!\w\()([a-z]\w*)\b(?:=({_VALUE}))?")
_TWICE = re.compile(r"(--[\w-]+(?: \w+)?)(?: \(\1\)| or \1)")


def flags_of(command: Callable[..., None]) -> dict[str, str]:
    """Returns how a command calls each of its settings: the flag by the name of the argument."""
    flags = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if get_origin(parameter.annotation) is not Annotated:
            continue
        info = get_args(parameter.annotation)[1]
        if isinstance(info, OptionInfo):
            # The first name of an annotated option stands where its default would.
            written = (info.default, *(info.param_decls or ()))
            named = [str(flag) for flag in written if str(flag).startswith("--")]
            flags[name] = named[0] if named else f"--{name.replace('_', '-')}"
    for name, (own, words) in _OTHER_NAMES.items():
        if own in flags and name not in flags:
            flags[name] = words.format(flags[own])
    return flags


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """Calls settings as the command line does: Expected --epochs above 0, --axis 1.

    Calls of Python are left as they are, ``sn.Shield(model, axis=1)``.
    """
    first = re.match(r"Expected (\w+)\b", message)
    if first and first[1] in flags:
        message = f"Expected {flags[first[1]]}{message[first.end() :]}"
    parts = (text if is_call else _said(text, flags) for text, is_call in _parts(message))
    said = _TWICE.sub(r"\1", "".join(parts))
    takes_a_shield = "preset" in flags
    if not (takes_a_shield and _IN_PYTHON.search(said)):
        return said
    measured = _MEASURED.search(said)
    way = f"--outputs {measured[1]} --calibrate FILE, or " if measured else ""
    return said + _FROM_THE_SHELL.format(way)


def report_in_flags(report: "Report", flags: Mapping[str, str]) -> "Report":
    """Returns a report that names flags where it says what was not tested."""
    subjects = tuple(
        replace(subject, untested=tuple(in_flags(line, flags) for line in subject.untested))
        for subject in report.subjects
    )
    return replace(report, subjects=subjects)


def _parts(message: str) -> Iterator[tuple[str, bool]]:
    """Cuts a message into text and calls; what is never closed is text."""
    start = 0
    for call in re.finditer(r"[A-Za-z_][\w.]*\(", message):
        if call.start() < start or (end := _closing(message, call.end())) is None:
            continue
        yield message[start : call.start()], False
        yield message[call.start() : end], True
        start = end
    yield message[start:], False


def _closing(message: str, start: int) -> int | None:
    depth = 1
    for place in range(start, len(message)):
        depth += {"(": 1, ")": -1}.get(message[place], 0)
        if depth == 0:
            return place + 1
    return None


def _said(text: str, flags: Mapping[str, str]) -> str:
    def flag(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name not in flags or (value is None and "_" not in name):
            return match[0]
        return _with_value(flags[name], value)

    return _ARGUMENT.sub(flag, text)


def _with_value(flag: str, value: str | None) -> str:
    if value == "(inputs, labels)":
        return _LABELED.format(flag)
    if value is not None and (names := _NAMES.fullmatch(value)):
        return f"{flag} {names[1].upper().replace(' ', '')}"
    if not value or value in ("...", "True") or value.startswith("("):
        return flag
    return f"{flag} {value.strip(_QUOTES)}"
