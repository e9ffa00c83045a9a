"""What commands share: options, exit codes, and the table on the terminal."""

import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

INTERNAL_ERROR = 4

PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy", help="TOML file of limits; shieldnet policy init writes one", metavar="FILE"
    ),
]
Targets = Annotated[
    list[Path] | None,
    typer.Option(
        "--output",
        "-o",
        "--html",
        "--json",
        "--junit",
        "--sarif",
        "--markdown",
        metavar="FILE",
        help="write the report here, in the form that the name asks for: .html, .json, .xml "
        "(JUnit), .sarif, .md, README.md (a section of a model card); repeatable",
    ),
]
_COLORS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
_SUMMARY = "GITHUB_STEP_SUMMARY"


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turns our own errors into one line and their exit code, anything else into exit 4."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        from shieldnet.core.errors import ShieldnetError

        try:
            command(*args, **kwargs)
        except ShieldnetError as error:
            Console(stderr=True).print(f"{type(error).__name__}: {error}", markup=False)
            raise typer.Exit(error.exit_code) from error
        except OSError as unwritable:
            Console(stderr=True).print(f"{type(unwritable).__name__}: {unwritable}", markup=False)
            raise typer.Exit(2) from unwritable
        except (typer.Exit, typer.Abort, KeyboardInterrupt):
            raise
        except Exception as bug:
            traceback.print_exc()
            Console(stderr=True).print("This is a defect of shieldnet: please report it.")
            raise typer.Exit(INTERNAL_ERROR) from bug

    return run


def publish(reports: Sequence[Any], policy: Any, targets: Iterable[Path]) -> None:
    """Prints reports, writes them wherever it is asked for, and raises where the policy is not met.

    On GitHub, a summary of the run gets them too.
    """
    from shieldnet.reports.report import require, save, summary

    for report in reports:
        print_report(report, policy)
    for target in targets:
        save(reports, target, policy)
        typer.echo(f"Wrote {target}.")
    if step := os.environ.get(_SUMMARY):
        with Path(step).open("a", encoding="utf-8") as file:
            file.write(summary(reports, policy))
    require(reports, policy)


def print_report(report: Any, policy: Any = None) -> None:
    """Prints the headline table with every shield's verdict, and the notes under it."""
    console = Console()
    table = Table(
        title=report.title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    headers, rows = report.rows()
    for column, header in enumerate(headers):
        table.add_column(header, justify="left" if column == 0 else "right", no_wrap=column == 0)
    table.add_column("policy")
    for row in rows:
        outcome = report.verdict(policy, row[0]).outcome
        table.add_row(*map(_cell, row), Text(outcome, style=_COLORS[outcome]))
    console.print(table)
    for note in report.notes():
        console.print(note, style="dim", markup=False, highlight=False)


def _cell(text: str) -> Text:
    """Puts a value above its interval, so that the table fits 80 columns."""
    value, bracket, interval = text.partition(" [")
    if not bracket:
        return Text(text)
    short = interval.rstrip("]").replace(", ", "–").replace("0.", ".")
    return Text(f"{value}\n{short}")
