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
        str | None, typer.Option(help="Mark this client, which is found by its keyed hash.")
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
    subjects = [None, *kept.most_charged(most)]
    own = kept.seal.subject(client) if client else None
    if own and own not in subjects and own in kept.subjects:
        subjects.insert(1, own)
    rows = []
    for subject in subjects:
        whose = subject or "all clients together"
        whose += f" ({client})" if subject and subject == own else ""
        for budget in kept.policy.per_client if subject else kept.policy.in_all:
            charged = kept.charged(subject, budget)
            left = budget.limits.minus(charged.at_most(budget.limits))
            rows.append((whose, str(budget), said(charged, budget, every=True), said(left, budget)))
            whose = ""
    each = ", ".join(map(str, kept.policy.per_client))
    typer.echo(f"Clients: {len(kept.subjects)}. Records: {kept.state.head.number}. Each: {each}.")
    typer.echo(tabulate(rows, ("whose", "budget", "charged, leases included", "left")))
    if own and own not in kept.subjects:
        typer.echo(f"{client} was never charged.")
    if (more := len(kept.subjects) - most) > 0:
        typer.echo(f"Clients that --most leaves out: {more}.")


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
        raise ConfigError(
            f"{output} already exists: name another file with -o, or overwrite it with --force."
        )
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
    typer.echo("Keep it elsewhere, and pass it as --head next time.")
