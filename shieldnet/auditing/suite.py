"""Runs every attack and check against every shield and gathers what they found."""

import logging
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from shieldnet.attacks import Game
from shieldnet.attacks.attributes import PARTS_OF_ATTRIBUTES
from shieldnet.attacks.base import in_batches
from shieldnet.attacks.inversion.decoding import MIN_IMAGE_SIDE
from shieldnet.attacks.membership.blind import blind_finding
from shieldnet.attacks.membership.shadows import MIN_SHADOWS, ShadowPlan, Train, train_shadows
from shieldnet.attacks.secrets import places_of
from shieldnet.auditing.case import (
    as_given,
    as_the_model_reads,
    canaries_of,
    canary_sets,
    checked_sets,
    claimed_by,
    column_names,
    dropped,
    groups_of,
    require_auditable,
    require_classes,
    shuffled,
    try_once,
    with_bare,
)
from shieldnet.auditing.plan import Load, Tier, as_tier, estimate_s, told
from shieldnet.auditing.runner import played
from shieldnet.core.checks import choice, whole
from shieldnet.core.errors import ConfigError
from shieldnet.data.canaries import Planted
from shieldnet.data.examples import Canaries
from shieldnet.data.hashing import weights_hash
from shieldnet.findings.finding import NotApplicable
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.reports.report import BARE, Report
from shieldnet.running.engine import ENGINES, run, why_unsendable
from shieldnet.running.store import cache_in
from shieldnet.shield.module import Shield
from shieldnet.training.result import Finetuned

_log = logging.getLogger("shieldnet")


@dataclass(frozen=True)
class _Plan:
    """Says how many shadows are trained, by whom, and how many workers work at once."""

    shadows: int
    train: Train | None
    workers: int


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
    engine: str | None = None,
    workers: int | None = None,
    cache: str | Path | None = None,
    finetuned: Finetuned | Guarantee | None = None,
    title: str = "",
    duplicates: str = "refuse",
    seed: int = 0,
    with_examples: int = 0,
    progress: bool | None = None,
) -> Report:
    """Attacks a shield, or several of one model by name, and the bare model beside it.

    members: (inputs, labels) that trained the model; nonmembers: that it never saw, of the same
    kind; auxiliary: what the adversary owns, without which nothing can be inverted. Any of them may
    be a torch Dataset. columns: names of a table's columns; sensitive: those of them that somebody
    may want to learn. groups: subgroups to look at by themselves, ``{"sex": (of the members, of the
    nonmembers)}``, a value a record. canaries: from ``plant_canaries``.

    train: how the model was trained, ``train((inputs, labels), seed) -> model`` or a ``Recipe``:
    shadow models are trained so. Without it small reference models stand for them, the weaker form.
    shadows: how many; by default the tier's, 0 for none.
    tier: ``"quick"`` (about ten seconds), ``"standard"`` (about a minute), ``"full"`` (minutes to
    hours), or a ``Tier`` of your own attacks. How long it takes is logged before it starts.

    engine: ``"inline"``, ``"processes"``, ``"ray"`` or ``"dask"``; by default processes, but inline
    for the quick tier and for what cannot be sent. workers: by default one for each core. cache: a
    folder where results are kept under a fingerprint of all that they depend on: the same audit
    goes on where it was stopped. finetuned: what ``finetune`` returned for this model, or its
    guarantee: where it is of the weights, its upper bounds then stand beside every finding of
    membership, and a measured bound above them fails every policy. duplicates: ``"drop"`` takes
    records that stand in two sets out of both, with a count in the report. with_examples: how many
    nonmembers the report shows as pictures, next to what the adversary makes of them; 0 keeps every
    record out (the report then names the records that are read best by their places alone).
    progress: show a bar; by
    default only on a terminal.

    On a machine with busy neighbors, set OMP_WAIT_POLICY=PASSIVE before torch is imported (the
    command line does): torch's waiting threads spin, and an attack of 7 s took more than 200 s.

    The same seed gives the same report, whatever the engine. Nothing is released and the model is
    not touched.
    Errors: DataError for sets that are empty, too small, of different shape or overlapping;
    ConfigError for settings, and for a ``train`` that returns no model or ignores its seed.
    """
    start = time.monotonic()
    whole("seed", seed, low=0, high=2**63 - 1)
    whole("with_examples", with_examples, low=0)
    chosen = as_tier(tier)
    count = _shadow_count(chosen, shadows)
    shields = with_bare(shield)
    bare = shields[BARE]
    require_auditable(bare)
    sets, kept_rows, counts = checked_sets(members, nonmembers, auxiliary, duplicates)
    names = column_names(columns, sets["nonmembers"].inputs)
    if isinstance(sensitive, str):
        raise ConfigError(f"Expected sensitive as names of columns: sensitive=({sensitive!r},).")
    if taken := [name for name in sensitive if name.endswith(PARTS_OF_ATTRIBUTES)]:
        raise ConfigError(
            f"The sensitive column {taken[0]} ends as findings do ({', '.join(PARTS_OF_ATTRIBUTES)}"
            "): what was found of it could not be told from what was found of another. Rename it."
        )
    for name in sensitive:
        places_of(names, name)
    planted = canaries_of(canaries, sets)
    sets = as_the_model_reads(sets, bare.model)
    if planted is not None:
        parts = {"planted": planted.planted, "held_out": planted.held_out}
        read = as_the_model_reads(parts, bare.model)
        planted = replace(planted, planted=read["planted"], held_out=read["held_out"])
    weights = weights_hash(bare.model)
    claimed, of_the_run = claimed_by(finetuned, bare.model)
    try_once(bare, sets["nonmembers"])
    require_auditable(bare)
    require_classes(bare, [*sets.values(), *canary_sets(planted)])
    where = _engine(engine, chosen, shields, train)
    kept = cache_in(cache)
    hashes = {name: examples.fingerprint() for name, examples in sets.items()}
    given_groups = groups_of(groups, counts, kept_rows)
    sets, given_groups, orders = shuffled(sets, given_groups, kept_rows, seed)
    pieces = math.ceil(count / 8) if train is None else count
    with _Bar(len(shields) * len(chosen.attacks) + pieces, progress) as bar:
        game = Game(
            bare,
            sets["members"],
            sets["nonmembers"],
            sets.get("auxiliary"),
            seed=seed,
            columns=names,
            sensitive=tuple(sensitive),
            groups=given_groups,
            canaries=planted,
            guarantee=claimed,
        )
        at_once = 1 if where == "inline" else workers or os.cpu_count() or 1
        bar.step(f"{chosen.name}, {_announce(game, chosen, shields, _Plan(count, train, at_once))}")
        blind = blind_finding(sets["members"], sets["nonmembers"], seed)
        game = replace(game, blind=blind)
        skipped = dropped(counts, kept_rows)
        if count and any(attack.needs_shadows for attack in chosen.attacks):
            try:
                plan = ShadowPlan(
                    train,
                    count,
                    bare,
                    sets["members"],
                    sets["nonmembers"],
                    sets.get("auxiliary"),
                    planted,
                    seed,
                )
                game = replace(
                    game,
                    shadows=train_shadows(
                        plan, engine=where, workers=workers, cache=kept, done=bar.advance
                    ),
                )
            except NotApplicable as reason:
                skipped.append(f"membership with shadow models: {reason}")
        tell: Callable[[str], object] = bar.step if where == "inline" else _silent
        jobs = [
            (
                played,
                (name, replace(game, shield=one), chosen.attacks, kept, with_examples, tell),
            )
            for name, one in shields.items()
        ]
        per_subject = 0 if where == "inline" else len(chosen.attacks)
        subjects = run(jobs, engine=where, workers=workers, done=lambda: bar.advance(per_subject))
    return Report(
        title=title or f"Audit of {type(bare.model).__name__}",
        subjects=tuple(
            replace(
                as_given(one, orders),
                findings=(*one.findings, *of_the_run),
                untested=(*skipped, *one.untested),
            )
            for one in subjects
        ),
        guarantee=claimed,
        seed=seed,
        duration_s=time.monotonic() - start,
        kind=bare.chain.layout.kind,
        columns=names,
        groups=tuple(group.name for group in given_groups),
        environment=_environment() | {"tier": chosen.name, "engine": where},
        hashes={"model": weights} | hashes,
        inputs=sets["nonmembers"].inputs[:with_examples].float() if with_examples else None,
    )


def _silent(words: str) -> None:
    """Tells nobody: a worker has no bar."""


def _shadow_count(tier: Tier, given: int | None) -> int:
    if given is None:
        return tier.shadows
    count = whole("shadows", given, low=0)
    if 0 < count < MIN_SHADOWS:
        raise ConfigError(
            f"Expected at least {MIN_SHADOWS} shadows, or 0 for none; got {count}. "
            "Fewer say nothing of a single record."
        )
    return count


def _engine(
    engine: str | None, tier: Tier, shields: Mapping[str, Shield], train: Train | None
) -> str:
    """Returns where the work runs: processes where they pay and where the work can be sent."""
    if engine is not None:
        return choice("engine", engine, ENGINES)
    model = shields[BARE].model
    tensors = (*model.parameters(), *model.buffers())
    if tier.name == "quick" or any(one.device.type != "cpu" for one in tensors):
        return "inline"
    return "inline" if why_unsendable(dict(shields), train, tier.attacks) else "processes"


def _announce(game: Game, tier: Tier, shields: Mapping[str, Shield], plan: "_Plan") -> str:
    """Logs how long it will take, and returns that in words."""
    probe = game.nonmembers.inputs[:256]
    answers = in_batches(game.shield, probe)  # the first call prepares what others only use
    begun = time.monotonic()
    in_batches(game.shield, probe)
    sets = [game.members, game.nonmembers, *([game.auxiliary] if game.auxiliary else [])]
    rows = sum(len(one) for one in sets)
    load = Load(
        rows=rows,
        owned=0 if game.auxiliary is None else len(game.auxiliary),
        features=probe[0].numel(),
        classes=1 if game.is_vector else answers.shape[-1],
        ask_s=(time.monotonic() - begun) * rows / len(probe),
        pictures=probe.dim() == 4 and min(probe.shape[2:]) >= MIN_IMAGE_SIDE,
        reference_models=0 if plan.train is not None else plan.shadows,
    )
    noisy = [not one.deterministic for one in shields.values()]
    words = told(estimate_s(tier, load, shields=noisy, workers=plan.workers))
    by_train = f", {plan.shadows} shadows"
    if plan.train is not None:
        by_train += " (their training comes on top)"
    _log.info(
        "%s audit: %d attacks on %d shields%s; %s",
        tier.name,
        len(tier.attacks),
        len(shields),
        by_train if plan.shadows else "",
        words,
    )
    return words


def _environment() -> dict[str, str]:
    versions = {}
    for package in ("shieldnet", "torch", "numpy", "scipy", "captum", "opacus"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {"python": platform.python_version(), "platform": platform.platform(), **versions}


class _Bar:
    """Shows how far the audit is, on a terminal or when asked."""

    def __init__(self, steps: int, progress: bool | None) -> None:
        from tqdm import tqdm

        hidden = None if progress is None else not progress
        self._bar = tqdm(total=steps, disable=hidden, leave=False, unit="step")
        self._begun = False

    def step(self, words: str) -> None:
        if self._begun:
            self._bar.update()
        self._begun = True
        self._bar.set_description(words)

    def advance(self, steps: int = 1) -> None:
        self._bar.update(steps)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
