"""Plays every attack against one shield, or reads what it found when it was played before."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from shieldnet.attacks import Game
from shieldnet.attacks.base import Measurement
from shieldnet.attacks.membership.cascade import train_cascade
from shieldnet.attacks.membership.shadows import ShadowPlan
from shieldnet.attacks.positions.position_shadows import train_position_shadows
from shieldnet.attacks.shadow_answers import PositionShadows, Shadows
from shieldnet.auditing.ceilings import with_ceilings
from shieldnet.auditing.estimate import tell_when_first_is_done
from shieldnet.auditing.plan import Plan, Tier, protected
from shieldnet.checks.utility import agreement, utility
from shieldnet.core.randomness import noise_about, replayed_noise
from shieldnet.core.statistics import Curve
from shieldnet.findings.finding import CLASS_IMAGE, Exposed, Finding, NotApplicable, Outcome
from shieldnet.findings.metrics import Metrics
from shieldnet.findings.reading import without_label
from shieldnet.privacy.certificate import Certificate
from shieldnet.reports.report import BARE
from shieldnet.reports.subject import Subject
from shieldnet.running.engine import run
from shieldnet.running.fingerprints import fingerprint
from shieldnet.running.progress import Progress
from shieldnet.running.store import Cache, read_text_array, text_array
from shieldnet.shield.module import Shield

ALWAYS_UNTESTED = (
    "callers who pool their answers over time, and attacks that nobody here has thought of"
)
"""What this version cannot test; every report says so."""
SIDE_CHANNELS = (
    "timing and other side channels: a served model is timed by the attack Timing (docs/attacks.md)"
)
NO_CASCADE = (
    "membership by a cascade of shadows: it follows the answers of one shield, audit each by itself"
)
OTHER_CHANNELS = "side channels other than response times"


def with_shadows(
    game: Game, shields: Mapping[str, Shield], plan: Plan, bar: Progress
) -> tuple[Game, tuple[str, ...]]:
    """Trains the shadows that a plan asks for; says what is not tested where they do not fit."""
    if not plan.trains_shadows:
        return game, ()
    if plan.train is None and game.shield.chain.layout.kind == "embeddings":
        reason = "reference models are classifiers, the model gives embeddings: pass train=..."
        return game, (f"membership with shadow models: {reason}",)
    done: Callable[[], object] = bar.advance
    if plan.train is not None:
        done = tell_when_first_is_done(plan.shadow_jobs, plan.at_once, done, bar.tell)
    try:
        if game.extent is not None:
            shields = {name: game.behind(one).shield for name, one in shields.items()}
            return replace(game, position_shadows=_at_positions(game, shields, plan, done)), ()
        shadows = _of_rows(game, shields, plan, done)
    except NotApplicable as reason:
        return game, (f"membership with shadow models: {reason}",)
    left_out = plan.cascade_fits and len(plan.stages) == 1 < len(protected(shields))
    return replace(game, shadows=shadows), (NO_CASCADE,) if left_out else ()


def _at_positions(
    game: Game, shields: Mapping[str, Shield], plan: Plan, done: Callable[[], object]
) -> PositionShadows:
    return train_position_shadows(
        game,
        shields,
        plan.train,
        plan.shadows,
        engine=plan.engine or "inline",
        workers=plan.workers,
        cache=plan.cache,
        done=done,
    )


def _of_rows(
    game: Game, shields: Mapping[str, Shield], plan: Plan, done: Callable[[], object]
) -> Shadows:
    wanted = ShadowPlan(
        plan.train,
        plan.shadows,
        protected(shields)[0] if len(plan.stages) > 1 else game.shield,
        game.members,
        game.nonmembers,
        game.auxiliary,
        game.canaries,
        game.seed,
    )
    return train_cascade(
        wanted,
        plan.stages,
        engine=plan.engine or "inline",
        workers=plan.workers,
        cache=plan.cache,
        done=done,
    )


def play(
    game: Game, shields: Mapping[str, Shield], plan: Plan, with_examples: int, bar: Progress
) -> list[Subject]:
    """Plays a plan's attacks and checks against every shield."""
    begin = bar.begin if plan.is_inline else None
    jobs = [
        (
            _played,
            (name, game.behind(shield), plan.tier, plan.cache, with_examples, begin),
        )
        for name, shield in shields.items()
    ]
    steps = 0 if plan.is_inline else len(plan.tier.measurements)
    subjects: list[Subject] = run(
        jobs,
        engine=plan.engine or "inline",
        workers=plan.workers,
        done=lambda: bar.advance(steps),
    )
    return subjects


def _played(
    name: str,
    game: Game,
    tier: Tier,
    cache: Cache | None,
    with_examples: int,
    begin: Callable[[str], object] | None,
) -> Subject:
    """Runs every attack and check against one shield.

    begin: called before each; None in another process.
    """
    outcome = Outcome() if game.blind is None else Outcome(findings=(game.blind,))
    durations_s: dict[str, float] = {}
    with replayed_noise(game.seed):
        untested: list[str] = []
        findings = utility(game, untested)
        outcome += Outcome(findings=tuple(findings), untested=tuple(untested))
        for measurement in tier.measurements:
            task = re.sub(r"(?<!^)(?=[A-Z])", " ", type(measurement).__name__).lower()
            if begin is not None:
                begin(f"{name}: {task}")
            started = time.monotonic()
            outcome += _outcome(measurement, game, task, cache, with_examples)
            durations_s[task] = durations_s.get(task, 0.0) + time.monotonic() - started
        if name == BARE:
            outcome += _agreement(outcome.features, game)
    if game.is_vector:
        outcome = without_label(outcome)
    copies = 1 if game.canaries is None else game.canaries.copies
    return Subject(
        name=name,
        certificate=_certificate(game),
        findings=with_ceilings(outcome.findings, game.guarantee, copies),
        untested=(*outcome.untested, _side_channels(outcome), ALWAYS_UNTESTED),
        features=outcome.features,
        reconstructions=outcome.reconstructions,
        curves=outcome.curves,
        exposed=outcome.exposed,
        durations_s=durations_s,
        configuration=game.served.settings.digest(),
    )


def _certificate(game: Game) -> Certificate:
    """States what the shield costs as it is served; the last position alone was not asked about."""
    if game.last_alone and game.extent is not None:
        return game.served.certificate(game.extent.classes, positions=())
    return game.served.certificate()


def _side_channels(outcome: Outcome) -> str:
    """Names the side channels that were not tested."""
    is_timed = any(finding.name.startswith("timing.") for finding in outcome.findings)
    return OTHER_CHANNELS if is_timed else SIDE_CHANNELS


def _agreement(features: dict[str, Tensor], game: Game) -> Outcome:
    """Compares what attribution names with what inversion reads, where both were measured."""
    if not {"recovered", "leak map", "null map"} <= features.keys():
        return Outcome()
    try:
        return Outcome(findings=(agreement(features, game),))
    except NotApplicable as reason:
        return Outcome(untested=(f"attribution.rank_correlation: {reason}",))


def _outcome(
    measurement: Measurement, game: Game, task: str, cache: Cache | None, with_examples: int
) -> Outcome:
    """Plays one attack or check, or reads what it found when it was played before.

    Nothing is kept of a record, or of an image of a class, that the report does not show.
    """
    seen = game if measurement.needs_shadows else game.without_shadows()
    cache = cache if measurement.is_repeatable else None
    key = "" if cache is None else _key(measurement, seen, with_examples)
    if cache is not None and (kept := cache.get(key)) is not None:
        return _unpacked(kept)
    try:
        with noise_about(repr(measurement)):
            outcome = measurement(seen)
        named = (finding.name for finding in outcome.findings)
        Metrics(measurement.metrics).require(named, type(measurement).__name__)
    except NotApplicable as reason:
        outcome = Outcome(untested=(f"{task}: {reason}",))
    drawn = outcome.reconstructions
    shown = None if drawn is None or not with_examples else drawn[:with_examples].float()
    features = outcome.features
    if not with_examples:
        features = {
            name: values for name, values in features.items() if not name.startswith(CLASS_IMAGE)
        }
    outcome = replace(outcome, reconstructions=shown, features=features)
    if cache is not None:
        cache.put(key, _packed(outcome))
    return outcome


def _key(measurement: Measurement, game: Game, with_examples: int) -> str:
    sets = (game.members, game.nonmembers, game.auxiliary)
    return fingerprint(
        measurement,
        game.shield,
        sets,
        (game.seed, game.columns, game.sensitive, game.groups, game.canaries, game.beside),
        game.shadows,
        with_examples,
        None if game.blind is None else asdict(game.blind),
        game.guarantee,
        (game.extent, game.padding, game.base, game.position_shadows),
    )


def _packed(outcome: Outcome) -> dict[str, NDArray[Any]]:
    arrays = {f"feature {name}": values.numpy() for name, values in outcome.features.items()}
    if outcome.reconstructions is not None:
        arrays["reconstructions"] = outcome.reconstructions.numpy()
    document = {
        "findings": [asdict(finding) for finding in outcome.findings],
        "untested": outcome.untested,
        "curves": {name: asdict(curve) for name, curve in outcome.curves.items()},
        "exposed": [asdict(records) for records in outcome.exposed],
    }
    return {**arrays, "document": text_array(document)}


def _unpacked(arrays: Mapping[str, NDArray[Any]]) -> Outcome:
    document = read_text_array(arrays["document"])
    shown = arrays.get("reconstructions")
    return Outcome(
        findings=tuple(Finding.read(finding) for finding in document["findings"]),
        features={
            name.removeprefix("feature "): torch.from_numpy(values)
            for name, values in arrays.items()
            if name.startswith("feature ")
        },
        reconstructions=None if shown is None else torch.from_numpy(shown),
        untested=tuple(document["untested"]),
        curves={name: Curve.read(curve) for name, curve in document["curves"].items()},
        exposed=tuple(Exposed.read(records) for records in document["exposed"]),
    )
