"""The command that trains a copy of a model, privately where an epsilon is given."""

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shieldnet.cli.flags import flags_of, in_flags
from shieldnet.cli.options import DATA, Axis, Label, Model, Weights
from shieldnet.cli.terminal import guarded, tell_progress

_FEW_STEPS = 50

if TYPE_CHECKING:
    from shieldnet.privacy.guarantee import Guarantee
    from shieldnet.training.countermeasures.base import Countermeasure
    from shieldnet.training.result import Finetuned

Data = Annotated[str, typer.Option(help=f"The data to train on: {DATA}.")]
Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")]
Epsilon = Annotated[
    float | None,
    typer.Option(help="Privacy budget for DP-SGD. Omit for training without a guarantee."),
]
Delta = Annotated[
    float | None, typer.Option(help="Delta of the guarantee; below 1 / number of records.")
]
Epochs = Annotated[float, typer.Option(help="How often each record is used, on average.")]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Number of records in a step, on average.",
        show_default="the loader's own, else all with --epsilon, else 64",
    ),
]
OptimizerName = Annotated[
    str, typer.Option("--optimizer", help="sgd (momentum 0.9) or adam (AdamW).")
]
LearningRate = Annotated[float, typer.Option(help="Learning rate of the optimizer.")]
Part = Annotated[
    str, typer.Option(help="The weights to train: full, last (layer), bias or lora (rank 4).")
]
MaxGradNorm = Annotated[
    float, typer.Option(help="L2 norm that a record's gradient is clipped to, with --epsilon.")
]
AdaptiveNorm = Annotated[
    bool,
    typer.Option(
        "--adaptive-clip",
        help="Let the norm follow the gradients' median, from --max-grad-norm on.",
    ),
]
Canaries = Annotated[
    int, typer.Option(help="Number of canary gradients that audit the run itself; 0 for none.")
]
WeightDecay = Annotated[float, typer.Option(help="L2 penalty on the weights.")]
Start = Annotated[
    str | None,
    typer.Option(
        help="What the model knows of the data before: public (nothing: it is fresh, or of public "
        "data), or the guarantee.json that it was trained under. Without it the guarantee "
        "covers only the steps, and every policy with max_epsilon rejects it."
    ),
]
Heldout = Annotated[
    str | None,
    typer.Option(help="Data of the same kind that the model never saw: tests --start."),
]
ValidationData = Annotated[
    str | None,
    typer.Option(
        "--validation",
        help="Data that is never trained on: prints loss and accuracy before and after.",
    ),
]
Fix = Annotated[bool, typer.Option("--fix", help="Accept the fixes that preflight offers.")]
Kind = Annotated[
    str,
    typer.Option(help="The model's output type: logits, probabilities, binary_logits or values."),
]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Folder that keeps the training, to resume after a stop.")
]
CheckpointEvery = Annotated[
    float, typer.Option("--checkpoint-every", help="Seconds between two checkpoints.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an earlier model.")]
TestSeed = Annotated[
    int | None, typer.Option(help="Random seed, for tests only: who knows it knows the noise.")
]


@guarded
def finetune(
    model: Model,
    data: Data,
    output: Folder,
    epsilon: Epsilon = None,
    delta: Delta = None,
    epochs: Epochs = 10,
    batch_size: BatchSize = None,
    optimizer: OptimizerName = "sgd",
    learning_rate: LearningRate = 0.1,
    part: Part = "full",
    max_grad_norm: MaxGradNorm = 1.0,
    adaptive_clip: AdaptiveNorm = False,
    canaries: Canaries = 0,
    weight_decay: WeightDecay = 0.0,
    start: Start = None,
    heldout: Heldout = None,
    validation: ValidationData = None,
    fix: Fix = False,
    label: Label = None,
    weights: Weights = None,
    outputs: Kind = "logits",
    axis: Axis = None,
    checkpoint: Checkpoint = None,
    checkpoint_every_s: CheckpointEvery = 30.0,
    seed: TestSeed = None,
    force: Force = False,
) -> None:
    """Trains a copy of a model, with DP-SGD where --epsilon is given, and writes its weights.

    Writes model.safetensors and, with --epsilon, guarantee.json for audit --guarantee.
    """
    from shieldnet.core.checks import choice, optional
    from shieldnet.files.sources import load_model, load_training
    from shieldnet.training.compatibility import require_gradients
    from shieldnet.training.finetuning import finetune as run
    from shieldnet.training.private.hazards import same_draws
    from shieldnet.training.result import require_free
    from shieldnet.training.trainable import BY_NAME

    optional("safetensors.torch", extra="cli")  # before hours of training, not after
    require_free(output, force=force)
    tell_progress()
    trained = BY_NAME[choice("part", part, tuple(BY_NAME))]
    private = _private(epsilon, delta, max_grad_norm, adaptive_clip, canaries)
    countermeasures = [*private, *_decay(weight_decay)]
    with same_draws():  # the same command makes the same model, as a checkpoint requires
        untrained = require_gradients(load_model(model, weights))
    sets = load_training(
        {"data": data, "heldout": heldout, "validation": validation},
        label=label,
        targets=outputs == "values",
    )
    result = run(
        untrained,
        sets["data"],
        *countermeasures,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        train=trained,
        start=_start(start),
        heldout=sets["heldout"],
        validation=sets["validation"],
        outputs=outputs,
        axis=axis,
        fix=fix,
        seed=seed,
        checkpoint=checkpoint,
        checkpoint_every_s=checkpoint_every_s,
    )
    _publish(result, output)
    sets_of_audit = _sets_of_audit(data, validation, heldout)
    audit = [model, *_written(result, output), *sets_of_audit, *_as_trained(label, outputs, axis)]
    typer.echo(f"Next: shieldnet audit {shlex.join([*audit, '-o', str(output / 'report.html')])}")
    typer.echo("Add --policy default, or a file of shieldnet policy init, to judge the audit.")
    _require_proven(result)


def _private(
    epsilon: float | None, delta: float | None, norm: float, adaptive: bool, canaries: int
) -> "list[Countermeasure]":
    from shieldnet.core.errors import ConfigError
    from shieldnet.training.private.clipping import AdaptiveClip
    from shieldnet.training.private.dpsgd import DPSGD

    if epsilon is not None:
        clip = AdaptiveClip(start=norm) if adaptive else norm
        return [DPSGD(epsilon, delta, max_grad_norm=clip, canaries=canaries)]
    if delta is not None or canaries or adaptive:
        raise ConfigError("Expected --epsilon with --delta, --canaries or --adaptive-clip.")
    return []


def _start(start: str | None) -> "Literal['public'] | Guarantee | None":
    from shieldnet.files.sources import load_guarantee

    if start is None or start == "public":
        return None if start is None else "public"
    return load_guarantee(Path(start))


def _decay(weight_decay: float) -> "list[Countermeasure]":
    from shieldnet.training.countermeasures.base import WeightDecay

    return [WeightDecay(weight_decay)] if weight_decay else []


def _written(result: "Finetuned", output: Path) -> list[str]:
    """Returns the options that name the written files."""
    from shieldnet.training.result import GUARANTEE, WEIGHTS

    files = {"--weights": WEIGHTS}
    if result.guarantee is not None:
        files["--guarantee"] = GUARANTEE
    return [word for option, name in files.items() for word in (option, str(output / name))]


def _sets_of_audit(data: str, validation: str | None, heldout: str | None) -> list[str]:
    """Returns the options that name an audit's data, which may have no row twice."""
    given = dict.fromkeys(one for one in (validation, heldout) if one)
    nonmembers, auxiliary, *_ = (*given, "OTHER_DATA", "MORE_DATA")
    return ["--members", data, "--nonmembers", nonmembers, "--auxiliary", auxiliary]


def _as_trained(label: str | None, outputs: str, axis: int | None) -> list[str]:
    """Returns the options that an audit of the same model and data needs, too."""
    options = {} if label is None else {"--label": label}
    if outputs == "values":
        options["--shield"] = "SHIELD.toml"
    elif outputs != "logits":
        options["--outputs"] = outputs
    if axis is not None:
        options["--axis"] = str(axis)
    return [word for option in options.items() for word in option]


def _publish(result: "Finetuned", output: Path) -> None:
    """Prints the result, and writes weights and guarantee."""
    result.save(output, force=True)  # checked before training
    typer.echo(in_flags(str(result), flags_of(finetune)))
    for path in _written(result, output)[1::2]:
        typer.echo(f"Wrote {path}.")
    steps = math.inf if result.guarantee is None else result.guarantee.steps
    if steps < _FEW_STEPS:
        typer.echo(
            f"The model took {steps} steps in all. Private training usually needs 100 or more to "
            "learn: raise --epochs, which keeps the epsilon and adds noise, and --learning-rate."
        )


def _require_proven(result: "Finetuned") -> None:
    """Raises PolicyFailed if the run's own audit found more than is proven."""
    from shieldnet.core.errors import PolicyFailed

    if any(finding.crosses_proof for finding in result.findings):
        raise PolicyFailed("The run's own audit found more than is proven: do not release it.")
