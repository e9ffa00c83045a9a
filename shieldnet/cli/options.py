"""What the options of several commands are called, and what their help says."""

from pathlib import Path
from typing import Annotated

import typer

DATA = (
    ".npz (arrays x and y, or the model's inputs by name and labels), .npy or "
    "inputs.npy,labels.npy, .csv, .tsv, .parquet, a folder with a folder of images for each class, "
    "or package.module:factory"
)

Model = Annotated[
    str,
    typer.Argument(
        help="The model: package.module:factory, a function that returns it, or that returns a "
        "Shield around it; or a file that ends in .pt2 (torch.export.save) or .onnx (of several "
        "outputs, one by name: FILE.onnx:NAME)."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(help="Weights for the factory's model: .safetensors, or a .pt of weights alone."),
]
Preset = Annotated[
    str | None,
    typer.Option(help="The shield: strict, balanced, open or certified.", show_default="balanced"),
]
ShieldFile = Annotated[
    Path | None, typer.Option("--shield", help="A shield as a TOML file, in place of a preset.")
]
Outputs = Annotated[
    str | None,
    typer.Option(
        help="The model's output type: logits, probabilities, binary_logits or "
        "binary_probabilities. values and embeddings need --calibrate or --shield.",
        show_default="logits; of a fitted regressor values",
    ),
]
Axis = Annotated[
    int | None,
    typer.Option(
        help="The axis of the classes, if it is not the last: 1 for a segmentation, -1 for text."
    ),
]
ReleasePositions = Annotated[
    str | None,
    typer.Option(
        help="Which positions of a language model's answer are released: all, or last, the next "
        "token's scores alone, which is then all that counts and costs. last needs --axis -1.",
        metavar="all|last",
        show_default="all",
    ),
]
Calibrate = Annotated[
    str | None,
    typer.Option(
        help="Public inputs, 100 rows at least, on whose answers the preset of values or "
        "embeddings measures its range and step. Give no private data: the shield tells of it. "
        f"{DATA}."
    ),
]
Label = Annotated[
    str | None,
    typer.Option(
        help="The column of a table, or the array of an .npz, that holds the label, or the target "
        "of a regression.",
        show_default="label, y or target",
    ),
]
Seed = Annotated[int, typer.Option(help="Random seed: the same one gives the same report.")]
PolicyFile = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="Judge the report by the limits of this TOML file (shieldnet policy init writes one), "
        'or by the default ones: "default". Without it nothing is judged.',
        metavar="FILE",
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
        help="Write the report to this file, in the format of its ending: .html, .json, .xml "
        "(JUnit), .sarif, .md, README.md (a section of a model card). Repeatable.",
    ),
]
ENDINGS = {
    "--html": ".html",
    "--json": ".json",
    "--junit": ".xml",
    "--sarif": ".sarif",
    "--markdown": ".md",
}
"""What a file must end in that is named by a flag of its format."""
