"""Strict reading of JSON and TOML documents; every fault is reported as an error of the file."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any, TypeVar

from shieldnet.core.errors import ConfigError, DataError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 256 * 2**20
"""Larger documents, in bytes, are refused: typical reports and programs have a hundredth of it."""
MAX_DEPTH = 200
"""Maximum nesting of tables and lists; deeper documents are refused before any recursion."""
MAX_TOML_BYTES = 2**20
_MAX_DIGITS = 300  # of an integer, so that it fits into a float
_MAX_SHOWN_CHARACTERS = 160
_MARKS = re.compile(r"[\[\]{}.,=\n]")
_JSON_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_TOML_STRINGS = re.compile(r'"[^"\\\n]*(?:\\.[^"\\\n]*)*"|\'[^\'\n]*\'')

_Document = TypeVar("_Document", dict[str, Any], list[Any])


def read_json(path: str | Path, what: str) -> dict[str, Any]:
    """Reads a JSON file that contains an object.

    what: what the file should be, such as ``report``, for messages.
    Errors: DataError for a missing file, and for whatever ``parse_json`` refuses.
    """
    return parse_json(_content(Path(path), MAX_BYTES), path, what)


def parse_json(
    text: bytes | str,
    path: object,
    what: str = "document",
    *,
    kind: type[_Document] = dict,  # type: ignore[assignment]  # the default of a TypeVar
) -> _Document:
    """Parses standard JSON that contains an object (or, with ``kind``, a list).

    Errors: DataError for anything else: NaN and Infinity, a duplicate name in an object, very long
        numbers, and nesting beyond ``MAX_DEPTH``.
    """
    try:
        content = _decoded(text)
        _require_shallow(content, _JSON_STRINGS)
        document = json.loads(
            content,
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_float,
            object_pairs_hook=_object,
        )
    except (ValueError, RecursionError, MemoryError) as broken:
        raise DataError(f"{path} is not a JSON {what}: {_short(broken)}") from broken
    if not isinstance(document, kind):
        expected = "an object" if kind is dict else "a list"
        raise DataError(
            f"{path} is not a {what}: expected {expected}, got {type(document).__name__}."
        )
    return document


def read_toml(path: str | Path) -> dict[str, Any]:
    """Reads a TOML file.

    Errors: DataError for a missing file, ConfigError for invalid TOML, with its position.
    """
    content = _content(Path(path), MAX_TOML_BYTES)
    try:
        text = _decoded(content)
        _require_shallow(text, _TOML_STRINGS)
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError, MemoryError) as broken:
        raise ConfigError(f"{path} is not valid TOML: {_short(broken)}") from broken


def _content(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as missing:
        raise DataError(f"Cannot read {path}: {missing.strerror}.") from missing
    if len(content) > most:
        raise DataError(f"{path} has more than {most} bytes, the limit for such files.")
    return content


def _decoded(text: bytes | str) -> str:
    """Decodes UTF-8 and drops a byte order mark."""
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as broken:
        raise ValueError(f"expected UTF-8, got a byte {text[broken.start]:#04x}") from broken


def _require_shallow(text: str, strings: re.Pattern[str]) -> None:
    """Raises ValueError for too deep nesting, by brackets or by dots in a TOML key.

    Parsers and the users of their results recurse. How deep they can depends on Python's version
    and the remaining stack; this limit does not.
    """
    depth = dots = 0
    for mark in _MARKS.finditer(strings.sub("", text)):
        character = mark.group()
        depth += (character in "[{") - (character in "]}")
        dots = dots + 1 if character == "." else 0
        if max(depth, dots) > MAX_DEPTH:
            raise ValueError(f"it nests more than {MAX_DEPTH} deep")


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits:.20} is too large for a number")
    return number


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r:.40} occurs twice in one object")
    return document


def _short(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return f"it nests more than {MAX_DEPTH} deep"
    if isinstance(error, MemoryError):
        return "it does not fit in memory"
    message = str(error)
    return (
        message
        if len(message) <= _MAX_SHOWN_CHARACTERS
        else f"{message[:_MAX_SHOWN_CHARACTERS]}..."
    )
