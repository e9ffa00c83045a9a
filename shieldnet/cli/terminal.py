"""What every command does: errors and exit codes, flags by format, the table."""

import logging
import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from shieldnet.cli.flags import flags_of, in_flags
from shieldnet.cli.options import ENDINGS

if TYPE_CHECKING:
    from shieldnet.gate.policy import Policy
    from shieldnet.reports.report import Report

INTERNAL_ERROR = 4
_MAX_WIDTH = 10_000
_COLORS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
_NO_PAGE = "-o report.html lists"
_SUMMARY = "GITHUB_STEP_SUMMARY"


class Reporting(TyperCommand):
    """A command that writes reports: a flag of one format takes no file of another."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for number, argument in enumerate(args):
            flag, equals, value = argument.partition("=")
            path = value if equals else next(iter(args[number + 1 :]), "")
            ending = ENDINGS.get(flag)
            if ending is not None and path and Path(path).suffix != ending:
                raise typer.BadParameter(
                    f"{flag} takes a file that ends in {ending}, got {path}. For a file of any "
                    "format use -o.",
                    ctx=ctx,
                )
        return super().parse_args(ctx, args)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turns our own errors into one line and their exit code, anything else into exit 4."""
    flags = flags_of(command)

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        from shieldnet.core.errors import ShieldnetError
        from shieldnet.core.printable import printable

        console = Console(stderr=True)
        try:
            command(*args, **kwargs)
        except ShieldnetError as error:
            message = printable(in_flags(str(error), flags), keep="\n")
            console.print(f"{type(error).__name__}: {message}", markup=False, soft_wrap=True)
            raise typer.Exit(error.exit_code) from error
        except OSError as unwritable:
            message = printable(str(unwritable))
            console.print(f"{type(unwritable).__name__}: {message}", markup=False)
            raise typer.Exit(2) from unwritable
        except (typer.Exit, typer.Abort, typer.BadParameter, KeyboardInterrupt):
            raise
        except Exception as bug:
            traceback.print_exc()
            console.print("This is an internal error of shieldnet: please report it.")
            raise typer.Exit(INTERNAL_ERROR) from bug

    return run


def tell_progress() -> None:
    """Shows on stderr what long work says of itself."""
    log = logging.getLogger("shieldnet")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)


def policy_of(name: str | None) -> "Policy":
    """Reads the policy of ``--policy``; without one nothing is judged."""
    from shieldnet.gate.policy import Policy

    return Policy.unjudged() if name is None else Policy.load(name)


def checked_targets(targets: Iterable[Path] | None, policy: "Policy") -> list[Path]:
    """Returns the files to write, before hours of attacks are run."""
    from shieldnet.reports.formats import check_target

    return [check_target(target, is_judged=policy.asks) for target in targets or ()]


def publish(reports: Sequence["Report"], policy: "Policy", targets: Iterable[Path]) -> None:
    """Writes reports wherever it is asked for, prints them, and raises where the policy is not met.

    On GitHub, a summary of the run gets them too.
    """
    from shieldnet.reports.report import require, save, summary

    files = list(targets)
    listed = "the page lists" if any(file.suffix == ".html" for file in files) else _NO_PAGE
    for target in files:
        save(reports, target, policy)
    for report in reports:
        print_report(report, policy, listed)
    for target in files:
        typer.echo(f"Wrote {target}.")
    if step := os.environ.get(_SUMMARY):
        with Path(step).open("a", encoding="utf-8") as file:
            file.write(summary(reports, policy))
    require(reports, policy)


def print_report(report: "Report", policy: "Policy", listed: str = _NO_PAGE) -> None:
    """Prints the headline table with every shield's verdict, and the notes under it.

    listed: what lists the rest of what was not tested, with its verb.
    """
    console = Console()
    headers, rows = report.rows()
    cells = [[*map(_cell, row)] for row in rows]
    if policy.asks:
        headers = [*headers, "policy"]
        judged = {subject.name for subject in report.released}
        for (name, *_), row in zip(rows, cells, strict=True):
            outcome = report.verdict(policy, name).outcome if name in judged else "not judged"
            row.append(Text(outcome, style=_COLORS.get(outcome, "dim")))
    columns = [[Text(header), *column] for header, *column in zip(headers, *cells, strict=True)]
    table = _table(report.title, columns)
    unbounded = console.options.update(max_width=_MAX_WIDTH)
    if console.measure(table, options=unbounded).maximum > console.width:
        table = _table(report.title, [list(row) for row in zip(*columns, strict=True)])
    console.print(table)
    console.print(
        _judged_by(report.policy_for(policy)), markup=False, highlight=False, soft_wrap=True
    )
    for note in report.notes(listed):
        console.print(note, style="dim", markup=False, highlight=False, soft_wrap=True)


def _table(title: str, columns: Sequence[Sequence[Text]]) -> Table:
    """Lays columns out, each below its head; the first names the row."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for number, (head, *_) in enumerate(columns):
        table.add_column(head, justify="left" if number == 0 else "right", no_wrap=True)
    for row in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*row)
    return table


def _judged_by(policy: "Policy") -> str:
    if policy.asks:
        return f"Judged by the {policy}."
    return (
        "No policy was given, so nothing is judged. Judge it by your own limits (shieldnet policy "
        "init; --policy FILE), or by the default ones (--policy default)."
    )


def _cell(text: str) -> Text:
    """Puts a value, its interval and its kind below each other: the table fits 80 columns."""
    value, bracket, interval = text.partition(" [")
    if not bracket:
        return Text(text)
    ends, _, kind = interval.partition("]")
    lines = [value, ends.replace(", ", "–"), kind.removeprefix(", ")]
    return Text("\n".join(line for line in lines if line))
