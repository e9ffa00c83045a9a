"""The verb: every attack and check against every shield, in one report."""

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from shieldnet.attacks.base import Attack
from shieldnet.attacks.membership.blind import blind_finding
from shieldnet.attacks.membership.shadows import Train
from shieldnet.auditing.case import Case, with_bare
from shieldnet.auditing.detectors import as_maps
from shieldnet.auditing.estimate import announce
from shieldnet.auditing.notices import NOTHING, measured_nothing, notices
from shieldnet.auditing.plan import Plan, Tier
from shieldnet.auditing.runner import play, with_shadows
from shieldnet.auditing.sets import Sets
from shieldnet.auditing.several import as_rows, model_itself
from shieldnet.auditing.tables import Given
from shieldnet.core.checks import whole
from shieldnet.data.canaries import Planted
from shieldnet.data.examples import Canaries
from shieldnet.outputs.adapters import name_of
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.reports.report import Report
from shieldnet.running.progress import Progress
from shieldnet.shield.module import Shield
from shieldnet.training.result import Finetuned


@torch.inference_mode(False)
@torch.enable_grad()
def audit(
    shield: Shield | Mapping[str, Shield],
    *,
    members: object,
    nonmembers: object,
    auxiliary: object = None,
    columns: Sequence[str] = (),
    sensitive: Sequence[str] = (),
    groups: Mapping[str, tuple[object, object]] | None = None,
    canaries: Canaries | Planted | None = None,
    train: Train | None = None,
    shadows: int | None = None,
    tier: str | Tier = "standard",
    attacks: Sequence[Attack] = (),
    engine: str | None = None,
    workers: int | None = None,
    cache: str | Path | None = None,
    finetuned: Finetuned | Guarantee | None = None,
    base: nn.Module | None = None,
    padding: int | None = None,
    title: str = "",
    duplicates: str = "refuse",
    seed: int = 0,
    with_examples: int = 0,
    progress: bool | None = None,
) -> Report:
    """Attacks a shield, or several of one model by name, and the bare model beside it.

    members: (inputs, labels) that trained the model, or (inputs, targets) of a regression, of shape
    (rows,) or (rows, outputs); nonmembers: that it never saw, of the same kind; auxiliary: what the
    adversary owns, without which nothing can be inverted. Any of them may be a torch Dataset or
    DataLoader. Several inputs are a dict by the model's arguments,
    ({"input_ids": ..., "attention_mask": ...}, labels), or a tuple, as for ``finetune``. A
    pipeline, or a function of tables, takes DataFrames, with words and missing values too: it is
    asked by such tables, and attacks see codes (``TableCoding``); labels are the estimator's own,
    words too. columns: names of a table's columns; sensitive: those of
    them that somebody may want to learn, or what the names of a one-hot group begin with. groups:
    subgroups to look at by themselves, ``{"sex": (of the members, of the nonmembers)}``, a value a
    record. canaries: from ``plant_canaries``.

    train: how the model was trained, ``train((inputs, labels), seed) -> model`` or a ``Recipe``:
    shadow models are trained so. For an estimator, inputs and labels come in their own form;
    several inputs come as the dict or tuple that they are. Texts without labels come with their
    next tokens, -100 where none counts; begin with a copy of ``base``.
    Without it small reference models stand for them, the weaker form; none stand for models of
    texts. shadows: how many; by default the tier's, 0 for none.
    tier: ``"quick"`` (about ten seconds), ``"standard"`` (about a minute), both plus the training
    of 8 or 16 shadow models where ``train`` is given, ``"full"`` (minutes to hours), or a ``Tier``
    of your own attacks. How long it takes is logged before it starts.
    attacks: more than the tier's, such as ``Timing(ask=...)``, which times a served model.

    engine: ``"inline"``, ``"processes"``, ``"ray"`` or ``"dask"``; by default processes, but inline
    for the quick tier and for what cannot be sent. workers: by default one for each core. cache: a
    folder where results are kept under a fingerprint of all that they depend on: the same audit
    goes on where it was stopped. finetuned: what ``finetune`` returned for this model, or its
    guarantee: where it is of the weights, its upper bounds then stand beside every finding of
    membership, and a measured bound above them fails every policy. base: the public model that was
    fine-tuned, with which attacks compare; by default the one that ``finetuned`` started from.
    padding: the token that fills up short sequences, where no attention_mask is among the inputs.
    duplicates: ``"drop"`` takes
    records that are in two sets from both, with a count in the report. with_examples: how many
    nonmembers the report shows as images, beside their reconstructions; 0 keeps every record out
    (the report then has the row indices of the most exposed records alone).
    progress: show a bar; by
    default only on a terminal.

    On a machine with busy neighbors, set OMP_WAIT_POLICY=PASSIVE before torch is imported (the
    command line does): torch's waiting threads spin, and an attack of 7 s took more than 200 s.

    The same seed gives the same report, whatever the engine. Nothing is released and the model is
    not touched.
    Errors: DataError for sets that are empty, too small, of different shape or overlapping;
    ConfigError for settings, and for a ``train`` that returns no model, or other
    models for the same data and seed.
    """
    start = time.monotonic()
    whole("with_examples", with_examples, low=0)
    if padding is not None:
        whole("padding", padding, low=0)
    sets = {"members": members, "nonmembers": nonmembers, "auxiliary": auxiliary}
    given = as_maps(Given(with_bare(shield), sets, columns, train, sensitive), canaries)
    given, planted = as_rows(given, canaries)
    given = given.as_codes(planted)
    plan = Plan.of(
        tier,
        attacks=attacks,
        train=given.train,
        shadows=shadows,
        engine=engine,
        workers=workers,
        cache=cache,
    )
    case = Case.of(
        given.shields,
        Sets.of(
            **given.sets,
            duplicates=duplicates,
            unread=given.unread,
            targets=given.gives_values,
        ),
        columns=given.columns,
        sensitive=sensitive,
        beside=given.beside,
        groups=groups,
        canaries=planted,
        finetuned=finetuned,
        base=base,
        padding=padding,
        seed=seed,
    )
    plan = plan.for_shields(case.shields).for_answers(at_positions=case.extent is not None)
    steps = len(case.shields) * len(plan.tier.measurements) + plan.shadow_jobs
    with Progress(steps, progress) as bar:
        game = case.game()
        bar.begin(announce(game, case.shields, plan, bar.tell))
        game = replace(game, blind=blind_finding(game.members, game.nonmembers, seed))
        game, untested = with_shadows(game, case.shields, plan, bar)
        subjects = play(game, case.shields, plan, with_examples, bar)
    left_out = plan.left_out(at_positions=case.extent is not None)
    untested = (*notices(game, case.shields, subjects, plan.tier), *untested, *left_out)
    titled = title or f"Audit of {name_of(model_itself(case.bare.model))}"
    return Report(
        title=f"{titled}: {NOTHING}" if measured_nothing(game, subjects, plan.tier) else titled,
        subjects=tuple(case.told(subject, untested) for subject in subjects),
        guarantee=case.guarantee,
        seed=seed,
        duration_s=time.monotonic() - start,
        kind=case.bare.chain.layout.kind,
        columns=case.columns,
        groups=tuple(group.name for group in case.groups),
        environment=_environment(plan),
        hashes=dict(case.hashes),
        inputs=case.shown(with_examples),
    )


def _environment(plan: Plan) -> dict[str, str]:
    versions = {}
    for package in ("shieldnet", "torch", "numpy", "scipy", "captum", "opacus"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **versions,
        "tier": plan.tier.name,
        "engine": plan.engine or "",
    }
