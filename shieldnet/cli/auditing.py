"""The command that attacks a hardened model and the bare one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shieldnet.cli.flags import flags_of, report_in_flags
from shieldnet.cli.gate import tell_unjudged
from shieldnet.cli.models import loaded_shield, require_public
from shieldnet.cli.options import (
    DATA,
    Axis,
    Calibrate,
    Label,
    Model,
    Outputs,
    PolicyFile,
    Preset,
    ReleasePositions,
    Seed,
    ShieldFile,
    Targets,
    Weights,
)
from shieldnet.cli.terminal import checked_targets, guarded, policy_of, publish, tell_progress
from shieldnet.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from shieldnet.reports.report import Report
    from shieldnet.reports.subject import Subject
    from shieldnet.shield.module import Shield

Members = Annotated[str, typer.Option(help=f"The data that trained the model: {DATA}.")]
Nonmembers = Annotated[str, typer.Option(help="Data of the same kind that it never saw.")]
Auxiliary = Annotated[
    str | None,
    typer.Option(
        help="Data of the same kind that the adversary owns. Without it no input can be "
        "reconstructed from an answer."
    ),
]
Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        help="A column of a table (or an array of an .npz) whose values are subgroups, each "
        "measured by itself. Repeatable.",
    ),
]
Train = Annotated[
    str | None,
    typer.Option(
        help="How the model was trained: package.module:name of train((inputs, labels), seed) -> "
        "model, or of a Recipe. Shadow models are trained so; without it small networks stand "
        "for them."
    ),
]
Sensitive = Annotated[
    list[str] | None,
    typer.Option(
        help="A column that somebody may want to learn, or the prefix of a one-hot group. "
        "Repeatable."
    ),
]
CanaryFactory = Annotated[
    str | None,
    typer.Option("--canaries", help="Planted canaries: package.module:factory that returns them."),
]
TierName = Annotated[
    str,
    typer.Option(
        "--tier",
        help="How hard it tries: quick (about 10 s), standard (about 1 min), both plus training "
        "8 or 16 shadow models where --train is given, full (minutes to hours), or "
        "package.module:NAME of a Tier of your own.",
    ),
]
Shadows = Annotated[
    int | None,
    typer.Option(help="Number of shadow models; 0 for none.", show_default="the tier's"),
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="Where the work runs: inline, processes, ray or dask.",
        show_default="processes, where they pay",
    ),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder that keeps results, to go on after a stop."),
]
GuaranteeFile = Annotated[
    Path | None,
    typer.Option("--guarantee", help="guarantee.json of the training, as finetune writes it."),
]
Base = Annotated[
    str | None,
    typer.Option(
        help="The public model that was fine-tuned, as MODEL: attacks on texts compare with it."
    ),
]
BaseWeights = Annotated[
    str | None, typer.Option(help="The weights of the base: .safetensors or .pt.")
]
Padding = Annotated[
    int | None,
    typer.Option(help="The token that fills up short texts, where there is no attention_mask."),
]
Duplicates = Annotated[
    str,
    typer.Option(
        help="What happens to records that are in two sets: refuse ends with an error, drop "
        "takes them out of both."
    ),
]
WithExamples = Annotated[
    int, typer.Option(help="Number of nonmembers that the report shows as images.")
]


@guarded
def audit(
    model: Model,
    members: Members,
    nonmembers: Nonmembers,
    auxiliary: Auxiliary = None,
    label: Label = None,
    groups: Groups = None,
    weights: Weights = None,
    preset: Preset = None,
    shield_file: ShieldFile = None,
    outputs: Outputs = None,
    axis: Axis = None,
    release_positions: ReleasePositions = None,
    calibrate: Calibrate = None,
    train: Train = None,
    sensitive: Sensitive = None,
    canaries: CanaryFactory = None,
    tier: TierName = "standard",
    shadows: Shadows = None,
    engine: Engine = None,
    cache: CacheFolder = None,
    guarantee: GuaranteeFile = None,
    base: Base = None,
    base_weights: BaseWeights = None,
    padding: Padding = None,
    policy: PolicyFile = None,
    targets: Targets = None,
    duplicates: Duplicates = "refuse",
    with_examples: WithExamples = 0,
    seed: Seed = 0,
) -> None:
    """Attacks a hardened model and the bare one; with --policy, exit code 0 passes and 1 fails.

    2 is a usage error or bad input, 3 too few samples for a verdict, 4 an internal error.
    """
    from shieldnet.auditing.suite import audit as run
    from shieldnet.files.sources import load_guarantee, load_object, load_sets

    tell_progress()
    limits = policy_of(policy)
    files = checked_targets(targets, limits)
    public = _base(base, base_weights)
    name, shield = loaded_shield(
        model,
        weights,
        preset,
        shield_file,
        outputs,
        axis,
        release_positions,
        calibrate,
        label,
    )
    names = {"members": members, "nonmembers": nonmembers, "auxiliary": auxiliary}
    sets = load_sets(
        names,
        shield.model,
        label=label,
        groups=groups or (),
        targets=shield.chain.layout.kind == "values",
    )
    if calibrate is not None:
        require_public(calibrate, sets, shield.model, label)
    if shield.chain.layout.kind != "embeddings":
        _say_unlabeled(sets, {"members": members, "nonmembers": nonmembers})
    report = run(
        {name: shield},
        **sets,
        train=None if train is None else load_object(train, "train"),
        sensitive=sensitive or (),
        canaries=None if canaries is None else load_object(canaries, "canaries", call=True),
        tier=load_object(tier, "tier") if ":" in tier else tier,
        shadows=shadows,
        engine=engine,
        cache=cache,
        finetuned=None if guarantee is None else load_guarantee(guarantee),
        base=public,
        padding=padding,
        title=f"Audit of {model}",
        duplicates=duplicates,
        seed=seed,
        with_examples=with_examples,
    )
    report = _called(report_in_flags(report, flags_of(audit)), model, shield)
    tell_unjudged([report], limits)
    publish([report], limits, files)


def _say_unlabeled(sets: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Says up front of which tables no column is known to be the label."""
    from shieldnet.files.tables import LABELS, is_table

    files = [
        name for role, name in names.items() if sets[role].labels is None and is_table(Path(name))
    ]
    if files:
        usual = ", ".join(LABELS)
        where = " and ".join(files)
        typer.echo(f"No label column found in {where} ({usual}): name it with --label.", err=True)


def _base(name: str | None, weights: str | None) -> "nn.Module | None":
    from shieldnet.files.sources import load_model

    if name is None:
        if weights is not None:
            raise ConfigError("Expected --base beside --base-weights.")
        return None
    return load_model(name, weights)


def _called(report: "Report", model: str, shield: "Shield") -> "Report":
    """Calls the model in certificates as the command line does, not by its class."""

    def called(subject: "Subject") -> "Subject":
        settings = (shield.bare() if subject.name == BARE else shield).settings
        described = replace(subject.certificate, shield=settings.describe(model))
        return replace(subject, certificate=described)

    from shieldnet.reports.report import BARE

    return replace(report, subjects=tuple(map(called, report.subjects)))
