"""The command line: which commands there are."""

import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated

import typer

from shieldnet.cli import (
    auditing,
    finetuning,
    gate,
    hardening,
    ledger,
    serving,
    splitting,
    verifying,
)
from shieldnet.cli.options import Seed
from shieldnet.cli.output import patient_output
from shieldnet.cli.terminal import Reporting, guarded, print_report

app = typer.Typer(
    help="Hardens a trained model before it serves untrusted clients, and audits what its answers "
    "still give away.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"shieldnet {installed('shieldnet')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Takes what stands before a command."""


@app.command()
@guarded
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the report into.")
    ] = Path(),
    seed: Seed = 0,
) -> None:
    """Trains on bundled real data, hardens, audits before and after, writes report.html."""
    from shieldnet.demo import POLICY, run

    for report in run(output, seed):
        print_report(report, POLICY, "the page lists")
    typer.echo(f"Open {output / 'report.html'} in a browser; {output / 'report.json'} has it all.")


app.command("split")(splitting.split)
app.command("audit", cls=Reporting)(auditing.audit)
app.command("report", cls=Reporting)(gate.report)
app.command("compare")(gate.compare)
app.add_typer(gate.policy_app, name="policy")
app.command("finetune")(finetuning.finetune)
app.command("harden")(hardening.harden)
app.command("verify")(verifying.verify)
app.command("serve")(serving.serve)
app.add_typer(serving.keys_app, name="keys")
app.add_typer(ledger.ledger_app, name="ledger")


def main() -> None:
    """Runs the command line. A reader that leaves, as ``head`` does, changes no exit code."""
    with patient_output():
        app(prog_name="shieldnet")


if __name__ == "__main__":
    sys.exit("Run it with: python -m shieldnet")
