"""The commands that look at a ledger of charges."""

from pathlib import Path
from typing import Annotated

import typer

from shieldnet.cli.terminal import guarded

ledger_app = typer.Typer(help="Shows, exports and verifies a ledger.", no_args_is_help=True)

Address = Annotated[
    str,
    typer.Argument(
        help="Address of the ledger: sqlite:///ledger.db, postgresql://host/database or "
        "redis://host:6379/0. Its key comes from SHIELDNET_LEDGER_KEY, or from the file beside a "
        "SQLite ledger.",
        metavar="ADDRESS",
    ),
]


@ledger_app.command("show")
@guarded
def show(
    address: Address,
    client: Annotated[
        str | None, typer.Option(help="Show this client's charges too, found by its keyed hash.")
    ] = None,
    most: Annotated[
        int, typer.Option(help="How many clients to list, those with most answers first.", min=0)
    ] = 20,
) -> None:
    """Shows the budgets of a ledger and what was charged in the current windows.

    Clients are listed by their keyed hashes, as the ledger has no names.
    """
    from tabulate import tabulate

    from shieldnet.serving.budget import said
    from shieldnet.serving.kept import KeptLedger

    kept = KeptLedger.read(address)
    rows = [
        (whose, str(budget), said(kept.charged(name, budget), budget, every=True))
        for whose, name, budgets in (
            ("all clients together", None, kept.policy.in_all),
            (f"client {client}", client, kept.policy.per_client if client else ()),
        )
        for budget in budgets
    ]
    each = ", ".join(map(str, kept.policy.per_client))
    typer.echo(
        f"{len(kept.subjects)} clients, {kept.state.head.number} records. Each client: {each}."
    )
    typer.echo(tabulate(rows, ("whose", "budget", "charged, leases included")))
    listed = [
        (subject if number == 0 else "", str(budget), said(units, budget, every=True))
        for subject, charged in kept.most_charged(most)
        for number, (budget, units) in enumerate(zip(kept.policy.per_client, charged, strict=True))
    ]
    if listed:
        typer.echo(tabulate(listed, ("client", "budget", "charged, leases included")))
    if (more := len(kept.subjects) - most) > 0:
        typer.echo(f"And {more} clients more, which --most lists.")


@ledger_app.command("export")
@guarded
def export(
    address: Address,
    output: Annotated[Path, typer.Option("--output", "-o", help="File of JSON lines to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Writes every record as a line of JSON. Clients are keyed hashes; no answer is recorded."""
    from shieldnet.core.errors import ConfigError
    from shieldnet.serving.kept import KeptLedger

    if output.exists() and not force:
        raise ConfigError(f"{output} already exists; use --force to overwrite it.")
    kept = KeptLedger.read(address)
    with output.open("w", encoding="utf-8") as file:
        count = sum(1 for line in kept.lines() if file.write(f"{line}\n"))
    typer.echo(f"Wrote {count} records to {output}.")


@ledger_app.command("verify")
@guarded
def verify(
    address: Address,
    head: Annotated[
        list[str] | None,
        typer.Option(
            help="The last record's MAC that an earlier verification printed: shows whether the "
            "ledger was put back to an older state. Repeatable.",
            metavar="MAC",
        ),
    ] = None,
) -> None:
    """Verifies that nothing in a ledger was changed. Exit code 1: it was."""
    import re

    from shieldnet.core.errors import ConfigError
    from shieldnet.serving.kept import KeptLedger

    heads = [text.strip().lower() for text in head or ()]
    if wrong := next((text for text in heads if not re.fullmatch("[0-9a-f]{64}", text)), None):
        raise ConfigError(f"Expected a MAC of 64 hexadecimal digits, got {wrong!r}.")
    checked = KeptLedger.read(address).verify(heads)
    typer.echo(f"Verified {checked.records} records. MAC of the last one: {checked.mac}")
    typer.echo("Keep it elsewhere, and give it as --head the next time.")
