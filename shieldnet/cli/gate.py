"""Commands of the release gate: write a policy, judge a saved report, compare two."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shieldnet.cli.options import PolicyFile, Targets
from shieldnet.cli.terminal import checked_targets, guarded, policy_of, publish

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shieldnet.gate.policy import Policy
    from shieldnet.reports.report import Report

policy_app = typer.Typer(help="Writes a policy, or checks one.", no_args_is_help=True)


@policy_app.command("init")
@guarded
def init(
    path: Annotated[
        Path | None, typer.Argument(help="File to write.", show_default="policy.toml")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The same as the argument.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Writes a commented policy that lists every limit."""
    from shieldnet.core.errors import ConfigError
    from shieldnet.gate.policy import init_text

    if path is not None and output is not None:
        raise ConfigError(f"Expected one file to write, got {path} and -o {output}.")
    path = path or output or Path("policy.toml")
    if not path.parent.is_dir():
        raise ConfigError(f"There is no folder {path.parent}. Make it with: mkdir -p {path.parent}")
    if path.exists() and not force:
        raise ConfigError(
            f"{path} already exists: name another file with -o, or overwrite it with --force."
        )
    path.write_text(init_text(), encoding="utf-8")
    typer.echo(f"Wrote {path}. Set its limits, then: shieldnet audit ... --policy {path}")


@policy_app.command("check")
@guarded
def check(paths: Annotated[list[Path], typer.Argument(help="Policies as TOML files.")]) -> None:
    """Checks that files are policies; exit code 2 at the first that is not."""
    from shieldnet.gate.policy import Policy

    for path in paths:
        limits = Policy.load(path)
        count = len(limits.limits) + len(limits.required) + sum(map(len, limits.groups.values()))
        typer.echo(f"{path} is a policy of {count} limits.")


def tell_unjudged(reports: "Iterable[Report]", policy: "Policy") -> None:
    """Prints what reports state and the policy has no limit for."""
    notes = dict.fromkeys(note for report in reports for note in report.passes(policy).notes)
    for note in notes:
        typer.echo(f"Note: {note}.")


@guarded
def report(
    saved: Annotated[Path, typer.Argument(help="report.json of an audit.")],
    policy: PolicyFile = None,
    targets: Targets = None,
) -> None:
    """Judges a saved report by a policy and writes it in other forms; no attack runs again.

    Exit code 0 passes the policy, 1 fails it, 2 is bad input, 3 too few samples for a verdict.
    """
    from shieldnet.reports.report import load_all

    limits = policy_of(policy)
    files = checked_targets(targets, limits)
    reports = load_all(saved)
    tell_unjudged(reports, limits)
    publish(reports, limits, files)


@guarded
def compare(
    before: Annotated[Path, typer.Argument(help="report.json of the last release.")],
    after: Annotated[Path, typer.Argument(help="report.json of this release.")],
) -> None:
    """Tells whether this release gives away significantly more than the last.

    Exit code 0: nothing is worse. 1: something is. 2: bad input. 3: something is new, or is no
    longer measured.
    """
    from shieldnet.core.errors import PolicyFailed, PolicyInconclusive
    from shieldnet.reports.comparison import compare as run

    comparison = run(before, after)
    typer.echo(str(comparison))
    if comparison.outcome == "fail":
        raise PolicyFailed("This release is worse than the last, as listed above.")
    if comparison.outcome == "inconclusive":
        raise PolicyInconclusive(f"{comparison.missing}.")
