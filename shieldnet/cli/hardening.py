"""The command that writes a hardened folder."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shieldnet.cli.models import inputs_of, loaded_shield
from shieldnet.cli.options import (
    DATA,
    Axis,
    Calibrate,
    Label,
    Model,
    Outputs,
    Preset,
    ReleasePositions,
    ShieldFile,
    Weights,
)
from shieldnet.cli.terminal import guarded

if TYPE_CHECKING:
    from shieldnet.shield.module import Shield

MAX_ROWS = 8  # of an example
Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")]
Classes = Annotated[
    int | None,
    typer.Option(
        help="Number of classes, for the certificate. Without it the report's or the example's "
        "counts.",
        min=2,
        show_default=False,
    ),
]
Positions = Annotated[
    str | None,
    typer.Option(help="The other axes of an answer, such as 480,640; '' where there is none."),
]
Example = Annotated[
    str | None,
    typer.Option(
        help=f"A few inputs, in place of --classes: the model answers {MAX_ROWS} of them, and "
        f"none is written. {DATA}."
    ),
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", help="report.json of the audit of this model and shield.")
]
Limits = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="The limits that the report meets, as a TOML file, or the default ones: "
        '"default". They go into the folder; the command stops if the report does not meet them.',
        metavar="FILE",
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        help="A private Ed25519 key (PEM), with which the list of files is signed.",
    ),
]
Graphs = Annotated[
    list[str] | None,
    typer.Option(
        "--graph",
        help="Put the shield into the folder as one graph, too, that runs without shieldnet: pt2 "
        "for torch, onnx for ONNX Runtime. Give it once for each; needs --example.",
        metavar="pt2|onnx",
    ),
]
Layout = Annotated[
    str,
    typer.Option(
        help="folder: the hardened folder itself. triton: --output is a model in a repository of "
        "Triton Inference Server, with config.pbtxt and the hardened folder as version 1; needs "
        "--graph onnx.",
        metavar="folder|triton",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Overwrite a hardened folder that already exists.")
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
    release_positions: ReleasePositions = None,
    calibrate: Calibrate = None,
    label: Label = None,
    positions: Positions = None,
    example: Example = None,
    report: ReportFile = None,
    policy: Limits = None,
    key: KeyFile = None,
    graph: Graphs = None,
    layout: Layout = "folder",
    force: Force = False,
) -> None:
    """Writes a folder with the model's weights, the shield, certificate, report and policy.

    Exit code 0: it is written. 1 and 3: the report does not meet the policy, or cannot tell. 2: bad
    input. Where it ends with an error, nothing is written.
    """
    from shieldnet.core.checks import choice
    from shieldnet.core.errors import ConfigError
    from shieldnet.shipping.parts import CERTIFICATE_TEXT, ONNX, TRITON_VERSION
    from shieldnet.shipping.preflight import require_inputs
    from shieldnet.shipping.writing import require_free

    if example is not None and (classes is not None or positions is not None):
        raise ConfigError("The example says how large an answer is: leave --classes out.")
    if graph and example is None:
        raise ConfigError(
            "A graph is drawn with a few inputs: give --example data.npz beside --graph."
        )
    is_triton = choice("--layout", layout, ("folder", "triton")) == "triton"
    if is_triton and "onnx" not in (graph or ()):
        raise ConfigError("Triton serves the ONNX graph: give --graph onnx beside --layout triton.")
    grid, model_folder = _grid(positions), output
    output = output / TRITON_VERSION if is_triton else output
    require_free(output, force=force)
    require_inputs(report, policy, key, graph or ())

    from shieldnet.exporting.writing import graphs_of
    from shieldnet.shipping.graph_files import read_graph
    from shieldnet.shipping.saving import save_hardened
    from shieldnet.shipping.triton import require_servable, write_config

    _, shield = loaded_shield(
        model, weights, preset, shield_file, outputs, axis, release_positions, calibrate, label
    )
    asked = None
    if example is not None:
        asked = inputs_of(example, "example", shield.model, label, most=MAX_ROWS)
    graphs = graphs_of(shield, asked, graph or ())
    if is_triton:
        require_servable(read_graph(ONNX, graphs[ONNX]))
    save_hardened(
        shield,
        output,
        model=model,
        report=report,
        policy=policy,
        classes=classes,
        positions=grid,
        example=asked,
        key=key,
        graphs=graphs,
        force=force,
    )
    if is_triton:
        typer.echo(
            f"Wrote {write_config(model_folder)}: tritonserver --model-repository "
            f"{model_folder.parent} serves it as {model_folder.name}."
        )
    typer.echo(f"{shield.describe()} is in {output}.")
    typer.echo(_certificate(output / CERTIFICATE_TEXT))
    described = "" if asked is not None else " --example inputs.npz"
    serving = f"{described} --ledger sqlite:///budget.db --keys keys.toml"
    serving += f" {_budget(shield, classes, grid)}"
    typer.echo(_next(output, model, serving, is_signed=key is not None))


def _budget(shield: "Shield", classes: int | None, positions: tuple[int, ...] | None) -> str:
    """Returns the flag of a budget of about 1000 answers: in bits, where they are finite."""
    from shieldnet.shield.settings import Extent

    extent = shield.seen.known()
    if extent is None and classes is not None:
        extent = Extent(classes, positions or ())
    bits = math.inf if extent is None else shield.settings.cost(extent).bits
    finite = 0 < bits < math.inf
    return f"--bits-per-client {math.ceil(bits) * 1000}" if finite else "--queries-per-client 1000"


def _certificate(path: Path) -> str:
    if path.exists():
        return path.read_text(encoding="utf-8").rstrip()
    return "No certificate: it depends on the number of classes. Give --classes."


def _next(output: Path, model: str, serving: str, *, is_signed: bool) -> str:
    from shieldnet.shipping.parts import WEIGHTS

    has_weights = (output / WEIGHTS).exists()
    given = f", model={model!r}" if has_weights else ""
    flags = f" --model {model}" if has_weights else ""
    key = " --public-key public.pem" if is_signed else ""
    given += ", public_key='public.pem'" if is_signed else ""
    return (
        f"Verify it with: shieldnet verify {output}{key}\n"
        f"Serve it with: shieldnet serve {output}{flags}{key}{serving}\n"
        f"Load it with: shieldnet.load_hardened({str(output)!r}{given})"
    )


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
