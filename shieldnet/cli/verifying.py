"""The command that verifies a hardened folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shieldnet.cli.terminal import guarded

if TYPE_CHECKING:
    from shieldnet.shipping.verification import Verification

_STYLES = {"pass": "green", "fail": "red", "inconclusive": "yellow", "not checked": "dim"}
PublicKey = Annotated[
    Path | None,
    typer.Option(
        help="The public Ed25519 key (PEM) with which the folder has to be signed. Take it from "
        "somewhere else than the folder."
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        help="package.module:factory of the model, which is then made and held to the audited "
        "one (its code is not compared); graphs are asked the same as the shield. It runs your "
        "code; without it no code of the model is run."
    ),
]

PolicyOfOnesOwn = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="Limits of your own that the report has to meet, too: a TOML file, or the default "
        'ones: "default". The folder\'s policy is only as strict as whoever wrote it.',
        metavar="FILE",
    ),
]
Required = Annotated[
    list[str] | None,
    typer.Option(
        help="A check that has to pass, so that it fails where it was not checked: signature, "
        "model, graphs, certificate, report or policy. Repeatable.",
        metavar="CHECK",
    ),
]


@guarded
def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that shieldnet harden wrote.")],
    public_key: PublicKey = None,
    model: ModelName = None,
    policy: PolicyOfOnesOwn = None,
    require: Required = None,
) -> None:
    """Checks that a hardened folder holds what was written, signed, proven and measured.

    Exit code 0: nothing that was checked is broken; the last line names what was not checked. 1:
    something is broken, was required and not checked, or the report does not meet the policy. 2: a
    usage error, such as a missing folder, key or package. 3: too few samples for a verdict. 4: an
    internal error.
    """
    from shieldnet.shipping.verifying import verify as run

    verification = run(
        folder, public_key=public_key, model=model, policy=policy, require=require or ()
    )
    _show(verification)
    verification.require()
    typer.echo(verification.conclusion)


def _show(verification: "Verification") -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for head in ("check", "result", "what was checked"):
        table.add_column(head, overflow="fold")
    for check in verification.checks:
        table.add_row(
            check.name, Text(check.result, style=_STYLES[check.result]), Text(check.words)
        )
    Console().print(table)
