"""The command line: demo, split, audit, report, compare, policy, finetune, harden."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shieldnet.cli import gate, splitting
from shieldnet.cli.shared import PolicyFile, Targets, guarded, print_report, publish

app = typer.Typer(
    help="Hardens a trained model before it answers clients, and audits what it still tells.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str,
    typer.Argument(
        help="package.module:factory, a function that returns it; or a file ending in .pt2 "
        "(torch.export.save) or .onnx (of several outputs, one by its name: FILE.onnx:NAME)"
    ),
]
Weights = Annotated[str | None, typer.Option(help=".safetensors, or .pt holding weights alone")]
Preset = Annotated[
    str | None, typer.Option(help="strict, balanced, open or certified", show_default="balanced")
]
ShieldFile = Annotated[
    Path | None, typer.Option("--shield", help="TOML file of a shield, instead of a preset")
]
Outputs = Annotated[
    str | None,
    typer.Option(
        help="what the model gives: logits, probabilities, binary_logits, binary_probabilities "
        "(for values and embeddings use --shield)",
        show_default="logits",
    ),
]
Axis = Annotated[
    int | None,
    typer.Option(help="where the classes are, if not last: 1 for a segmentation, -1 for text"),
]
TierName = Annotated[
    str, typer.Option(help="quick (about 10 s), standard (about 1 min), full (minutes to hours)")
]
Engine = Annotated[
    str | None,
    typer.Option(help="inline, processes, ray or dask", show_default="processes, where they pay"),
]
Seed = Annotated[int, typer.Option(help="the same seed gives the same report")]
DATA = (
    ".npz (arrays x and y), .npy or inputs.npy,labels.npy, .csv, .tsv, .parquet, a folder of "
    "images in a folder for each class, or package.module:factory"
)
Label = Annotated[
    str | None,
    typer.Option(help="the label's column in a table", show_default="label, y or target"),
]


@app.command()
@guarded
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="folder of the report")] = Path(),
    seed: Seed = 0,
) -> None:
    """Trains on bundled real data, hardens, audits before and after, writes report.html."""
    from shieldnet.demo import run

    reports = run(output, seed)
    for report in reports:
        print_report(report)
    typer.echo(f"Open {output / 'report.html'} in a browser; {output / 'report.json'} has it all.")


@app.command()
@guarded
def audit(
    model: Model,
    members: Annotated[str, typer.Option(help=f"what trained the model: {DATA}")],
    nonmembers: Annotated[str, typer.Option(help="what it never saw, of the same kind")],
    auxiliary: Annotated[str | None, typer.Option(help="what the adversary owns")] = None,
    label: Label = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(
            "--group",
            help="a column of a table (or array of an .npz) whose values are subgroups to be "
            "looked at by themselves; repeatable",
        ),
    ] = None,
    weights: Weights = None,
    preset: Preset = None,
    shield_file: ShieldFile = None,
    outputs: Outputs = None,
    axis: Axis = None,
    train: Annotated[
        str | None,
        typer.Option(
            help="package.module:name of train((inputs, labels), seed) -> model or of a Recipe, "
            "by which shadow models are trained; without it small networks stand for them"
        ),
    ] = None,
    sensitive: Annotated[
        list[str] | None,
        typer.Option(
            help="a column that somebody may want to learn, or what the names of a one-hot group "
            "begin with; repeatable"
        ),
    ] = None,
    canaries: Annotated[
        str | None, typer.Option(help="package.module:factory that returns planted canaries")
    ] = None,
    tier: TierName = "standard",
    shadows: Annotated[
        int | None, typer.Option(help="shadow models; 0 for none", show_default="the tier's")
    ] = None,
    engine: Engine = None,
    cache: Annotated[
        Path | None, typer.Option(help="keep results here, to go on after a stop")
    ] = None,
    guarantee: Annotated[
        Path | None, typer.Option(help="guarantee.json of the training, as finetune writes it")
    ] = None,
    policy: PolicyFile = None,
    targets: Targets = None,
    duplicates: Annotated[
        str, typer.Option(help="drop takes records that stand in two sets out of both")
    ] = "refuse",
    with_examples: Annotated[
        int, typer.Option(help="show this many nonmembers as images; 0 keeps records out")
    ] = 0,
    seed: Seed = 0,
) -> None:
    """Attacks a hardened model and the bare one; exit 0 passes the policy, 1 fails it.

    2 is a usage error or bad input, 3 a measurement too small to tell, 4 an internal error.
    """
    from shieldnet.auditing.suite import audit as run
    from shieldnet.files.sources import (
        common_classes,
        common_columns,
        common_groups,
        load_examples,
        load_guarantee,
        load_object,
    )
    from shieldnet.gate.policy import Policy
    from shieldnet.outputs.estimators import Estimator
    from shieldnet.reports.formats import check_target

    _tell_how_long()
    limits = Policy.load(policy) if policy else Policy()
    chosen = [check_target(target) for target in targets or ()]
    sources = {"members": members, "nonmembers": nonmembers, "auxiliary": auxiliary}
    name, shield = _shield(model, weights, preset, shield_file, outputs, axis)
    as_records = isinstance(shield.model, Estimator)  # which reads words and missing values
    sets = common_classes(
        {
            role: load_examples(
                source, role, label=label, groups=groups or (), as_records=as_records
            )
            for role, source in sources.items()
            if source is not None
        }
    )
    report = run(
        {name: shield},
        members=sets["members"].examples,
        nonmembers=sets["nonmembers"].examples,
        auxiliary=sets["auxiliary"].examples if "auxiliary" in sets else None,
        columns=common_columns(sets.values()),
        groups=common_groups(sets["members"], sets["nonmembers"]),
        train=None if train is None else load_object(train, "train"),
        sensitive=sensitive or (),
        canaries=None if canaries is None else load_object(canaries, "canaries", call=True),
        tier=tier,
        shadows=shadows,
        engine=engine,
        cache=cache,
        finetuned=None if guarantee is None else load_guarantee(guarantee),
        title=f"Audit of {model}",
        duplicates=duplicates,
        seed=seed,
        with_examples=with_examples,
    )
    publish([report], limits, chosen)


@app.command()
@guarded
def finetune(
    model: Model,
    data: Annotated[str, typer.Option(help=f"what to train on: {DATA}")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to write into")],
    epsilon: Annotated[
        float | None, typer.Option(help="to keep to; without it nothing is proven")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="of epsilon; below 1 / records")] = None,
    epochs: Annotated[float, typer.Option(help="how often each record is used, on average")] = 10,
    batch_size: Annotated[
        int | None,
        typer.Option(help="records of a step", show_default="all with --epsilon, else 64"),
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="of the optimizer")] = 0.1,
    part: Annotated[str, typer.Option(help="full, last, bias or lora")] = "full",
    max_grad_norm: Annotated[
        float, typer.Option(help="L2 norm that a record's gradient is clipped to")
    ] = 1.0,
    canaries: Annotated[int, typer.Option(help="that audit the run itself")] = 0,
    weight_decay: Annotated[float, typer.Option(help="L2 on the weights")] = 0.0,
    start: Annotated[
        str | None,
        typer.Option(
            help="public: the model knows nothing of the data yet (fresh, or of public data); or "
            "the guarantee.json that it was trained under. Without it the guarantee is of the "
            "steps alone, and no policy takes it"
        ),
    ] = None,
    heldout: Annotated[
        str | None,
        typer.Option(help="data of the same kind that the model never saw: tests --start"),
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="accept what preflight offers")] = False,
    label: Label = None,
    weights: Weights = None,
    outputs: Annotated[
        str, typer.Option(help="logits, probabilities, binary_logits or values")
    ] = "logits",
    axis: Axis = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="keep the training here, to go on after a stop")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="for tests only: who knows it knows the noise")
    ] = None,
) -> None:
    """Trains a copy of a model, within epsilon where one is given, and writes its weights.

    Writes model.safetensors and, with --epsilon, guarantee.json for audit --guarantee.
    """
    from shieldnet.core.checks import choice, optional
    from shieldnet.core.errors import ConfigError, PolicyFailed
    from shieldnet.files.sources import load_guarantee, load_model, load_training
    from shieldnet.files.weights import write_weights
    from shieldnet.training.compatibility import require_gradients
    from shieldnet.training.countermeasures.base import Countermeasure, WeightDecay
    from shieldnet.training.finetuning import finetune as run
    from shieldnet.training.private.dpsgd import DPSGD
    from shieldnet.training.trainable import BY_NAME

    optional("safetensors.torch", extra="cli")  # before hours of training, not after
    chosen: list[Countermeasure] = []
    if epsilon is not None:
        chosen.append(DPSGD(epsilon, delta, max_grad_norm=max_grad_norm, canaries=canaries))
    elif delta is not None or canaries:
        raise ConfigError("Expected --epsilon with --delta and --canaries, got none.")
    if weight_decay:
        chosen.append(WeightDecay(weight_decay))
    trained = require_gradients(load_model(model, weights))
    records, others = load_training(data, heldout, label=label)
    report = run(
        trained,
        records,
        *chosen,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        train=BY_NAME[choice("part", part, tuple(BY_NAME))],
        start=start if start in (None, "public") else load_guarantee(Path(start)),  # type: ignore[arg-type]  # checked
        heldout=others,
        outputs=outputs,
        axis=axis,
        fix=fix,
        seed=seed,
        checkpoint=checkpoint,
    )
    output.mkdir(parents=True, exist_ok=True)
    write_weights(report.model, output / "model.safetensors")
    typer.echo(str(report))
    typer.echo(f"Wrote {output / 'model.safetensors'}.")
    if report.guarantee is not None:
        text = json.dumps(report.guarantee.document(), indent=1)
        (output / "guarantee.json").write_text(text, encoding="utf-8")
        typer.echo(f"Wrote {output / 'guarantee.json'}.")
    if any(finding.crosses_proof for finding in report.findings):
        raise PolicyFailed("The run's own audit found more than is proven: do not release it.")


@app.command()
@guarded
def harden(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to write into")],
    classes: Annotated[
        int | None, typer.Option(help="of an answer; without it there is no certificate", min=2)
    ] = None,
    weights: Weights = None,
    preset: Preset = None,
    shield_file: ShieldFile = None,
    outputs: Outputs = None,
    axis: Axis = None,
    positions: Annotated[
        str | None, typer.Option(help="other axes of an answer: 480,640; '' where there is none")
    ] = None,
) -> None:
    """Writes the shield as TOML and its certificate, for load_shield where the model is served."""
    from shieldnet.shield.toml import dump_shield

    grid = _positions(positions)
    _, shield = _shield(model, weights, preset, shield_file, outputs, axis)
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


app.add_typer(gate.policy_app, name="policy")
app.command("split")(splitting.split)
app.command("report")(gate.report)
app.command("compare")(gate.compare)


def _shield(
    model: str,
    weights: str | None,
    preset: str | None,
    shield_file: Path | None,
    outputs: str | None,
    axis: int | None,
) -> tuple[str, Any]:
    from shieldnet.core.checks import choice
    from shieldnet.core.errors import ConfigError
    from shieldnet.outputs.layout import MODEL_KINDS

    if shield_file is not None and (preset or outputs or axis is not None):
        raise ConfigError(
            "The file of --shield says it all: leave --preset, --outputs and --axis out."
        )

    from shieldnet.files.sources import load_model
    from shieldnet.shield.module import Shield
    from shieldnet.shield.presets import harden
    from shieldnet.shield.toml import load_shield

    kind = None if outputs is None else choice("outputs", outputs, MODEL_KINDS)
    loaded = load_model(model, weights)
    if isinstance(loaded, Shield):
        if shield_file is not None or preset or outputs or axis is not None:
            raise ConfigError(
                f"{model} is a Shield already, which is judged as it is served: leave --preset, "
                "--shield, --outputs and --axis out, or name a function that returns the model."
            )
        return "served", loaded
    if shield_file is not None:
        return shield_file.stem, load_shield(loaded, shield_file)
    preset = preset or "balanced"
    return preset, harden(loaded, preset, outputs=kind, axis=axis)  # type: ignore[arg-type]  # checked


def _tell_how_long() -> None:
    """Shows on stderr what an audit says of itself before it starts."""
    import logging

    log = logging.getLogger("shieldnet")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)


def _positions(text: str | None) -> tuple[int, ...] | None:
    from shieldnet.core.errors import ConfigError

    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise ConfigError(
            f"Expected --positions as whole numbers such as 480,640; got {text!r}."
        ) from None


def main() -> None:
    """Runs the command line."""
    app(prog_name="shieldnet")


if __name__ == "__main__":
    sys.exit("Run it with: python -m shieldnet")
