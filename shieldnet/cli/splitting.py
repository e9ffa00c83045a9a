"""The command that divides data into the sets of an audit."""

from pathlib import Path
from typing import Annotated, Any

import typer

from shieldnet.cli.terminal import guarded

NAMES = ("members", "nonmembers", "auxiliary")


@guarded
def split(
    data: Annotated[Path, typer.Argument(help="A table (.csv, .tsv, .parquet), or an .npz.")],
    folder: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the sets into.")
    ] = Path(),
    shares: Annotated[
        list[float] | None,
        typer.Option(
            "--share",
            help="Share of the distinct records that goes to the members, the nonmembers and the "
            "adversary, in this order. Repeatable.",
            show_default="0.5, 0.25, 0.25",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            help="The column of a table that holds the label.", show_default="label, y or target"
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(help="A column of subgroups, as in audit. Repeatable.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed: the same one divides the same way.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Divides data at random into members, nonmembers and auxiliary rows that share no record.

    Rows whose inputs are equal go together, by one draw. Train on the members alone.
    """
    from shieldnet.core.errors import ConfigError
    from shieldnet.files.dividing import divide
    from shieldnet.files.tables import unlabeled

    chosen = tuple(shares or (0.5, 0.25, 0.25))
    if len(chosen) not in (2, 3):
        raise ConfigError(f"Expected two or three --share, got {len(chosen)}.")
    parts = divide(data, chosen, label=label, groups=group or (), seed=seed)
    targets = {name: folder / f"{name}{parts.ending}" for name in NAMES[: len(chosen)]}
    if there := [str(path) for path in targets.values() if path.exists() and not force]:
        exists, them = ("already exists", "it") if len(there) == 1 else ("already exist", "them")
        raise ConfigError(f"{', '.join(there)} {exists}; use --force to overwrite {them}.")
    folder.mkdir(parents=True, exist_ok=True)
    for path, rows, count in zip(targets.values(), parts.rows, parts.distinct, strict=True):
        parts.write(rows, path)
        equal = "" if count == len(rows) else f", {count} with distinct inputs, as audits count"
        typer.echo(f"Wrote {path}: {len(rows)} rows{equal}.")
    if parts.unlabeled:
        typer.echo(
            f"{unlabeled(parts.unlabeled, data)} Without it, all columns are inputs here and in "
            "the audit."
        )
    typer.echo(f"Train on {targets['members']} alone, then: {_next(targets, label)}")


def _next(targets: dict[str, Any], label: str | None) -> str:
    sets = " ".join(f"--{name} {path}" for name, path in targets.items())
    return f"shieldnet audit MODEL {sets}" + ("" if label is None else f" --label {label}")
