"""The command that writes a shield, and what is proven of it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from shieldnet.cli.models import loaded_shield
from shieldnet.cli.options import Axis, Model, Outputs, Preset, ShieldFile, Weights
from shieldnet.cli.terminal import guarded

Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")]
Classes = Annotated[
    int | None,
    typer.Option(help="Number of classes. Without it there is no certificate.", min=2),
]
Positions = Annotated[
    str | None,
    typer.Option(help="The other axes of an answer, such as 480,640; '' where there is none."),
]


@guarded
def harden(
    model: Model,
    output: Folder,
    classes: Classes = None,
    weights: Weights = None,
    preset: Preset = None,
    shield_file: ShieldFile = None,
    outputs: Outputs = None,
    axis: Axis = None,
    positions: Positions = None,
) -> None:
    """Writes the shield as TOML and its certificate, for load_shield where the model is served."""
    from shieldnet.shield.toml import dump_shield

    grid = _grid(positions)
    _, shield = loaded_shield(model, weights, preset, shield_file, outputs, axis)
    output.mkdir(parents=True, exist_ok=True)
    (output / "shield.toml").write_text(dump_shield(shield), encoding="utf-8")
    typer.echo(f"{shield.describe()} is in {output / 'shield.toml'}.")
    if classes is None:
        typer.echo("No certificate: it depends on the number of classes. Give --classes.")
    else:
        certificate = str(shield.certificate(classes, positions=grid))
        (output / "certificate.txt").write_text(f"{certificate}\n", encoding="utf-8")
        typer.echo(certificate)
    path = json.dumps(str(output / "shield.toml"))
    typer.echo(f"Serve it with: shield = shieldnet.load_shield(model, {path})")


def _grid(text: str | None) -> tuple[int, ...] | None:
    from shieldnet.core.errors import ConfigError

    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise ConfigError(
            f"Expected --positions as whole numbers such as 480,640; got {text!r}."
        ) from None
