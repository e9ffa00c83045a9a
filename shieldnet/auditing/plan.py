"""How hard an audit tries, and where: attacks, shadows, engine, workers, cache."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from shieldnet.attacks import (
    Attack,
    AttributeInference,
    AttributeRecovery,
    Averaging,
    ClassInversion,
    Extraction,
    HiddenSize,
    Inversion,
    JitterAveraging,
    LogitBias,
    MapInversion,
    MapMembership,
    MapProbing,
    MapSearch,
    Membership,
    OneRun,
    PositionAveraging,
    PromptInversion,
    Reidentification,
    Search,
    SequenceMembership,
    StraightThrough,
    TableLearning,
    TextExtraction,
)
from shieldnet.attacks.adversary.decoders import KernelRidge, NearestNeighbors, Network, Ridge
from shieldnet.attacks.adversary.map_decoders import Patches
from shieldnet.attacks.base import Measurement
from shieldnet.attacks.membership.cascade import MIN_CASCADE, stages_of
from shieldnet.attacks.membership.shadows import MIN_SHADOWS, Train, trained_at_once
from shieldnet.checks import Attribution, Calibration, Check, Masking, Memorization
from shieldnet.core.checks import choice, whole
from shieldnet.core.errors import ConfigError
from shieldnet.gate.declared import require_declared
from shieldnet.reports.report import BARE
from shieldnet.running.engine import ENGINES, why_unsendable
from shieldnet.running.store import Cache, cache_in
from shieldnet.shield.module import Shield


@dataclass(frozen=True)
class Tier:
    """Says what an audit runs. shadows: how many are trained; 0 leaves them out.

    checks: what is measured beside the attacks, after them.
    more_s: seconds on two cores for one shield of a small model, beyond the quick tier's, measured;
    asks: answers about every row, of a shield with noise. cascade: whether shadows by ``train``, if
    there are at least 16, are trained in stages that follow the target's answers, which finds more
    at the same cost. The answers are those of the one shield that is audited; with several, all
    shadows are trained at once.
    """

    name: str
    attacks: tuple[Attack, ...]
    checks: tuple[Check, ...] = ()
    shadows: int = 0
    more_s: float = 0.0
    asks: int = 64
    cascade: bool = False

    def __post_init__(self) -> None:
        whole("shadows", self.shadows, low=0)
        _require_all(self.attacks, Attack, "attacks such as Inversion()")
        _require_all(self.checks, Check, "checks such as Attribution()")
        for measurement in self.measurements:
            require_declared(measurement)

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Lists attacks and checks in the order in which they run."""
        return (*self.attacks, *self.checks)


def _require_all(measurements: object, kind: type, expected: str) -> None:
    if not isinstance(measurements, tuple | list):
        raise ConfigError(f"Expected a tuple of {expected}, got {measurements!r}.")
    for measurement in measurements:
        if not isinstance(measurement, kind):
            is_check = isinstance(measurement, Check)
            fix = f" It is a check: checks=({measurement!r},)." if is_check else ""
            raise ConfigError(f"Expected {expected}, got {measurement!r}.{fix}")


_CHECKS = (Attribution(), Masking(), Calibration())
_OF_TEXTS = (HiddenSize(), LogitBias())
_ALSO = (
    TableLearning(),
    Search(),
    StraightThrough(),
    Reidentification(),
    Membership(),
    SequenceMembership(),
    OneRun(),
    AttributeRecovery(),
    AttributeInference(),
    Extraction(),
    TextExtraction(),
    ClassInversion(),
    PromptInversion(),
    *_OF_TEXTS,
    MapInversion(),
    MapProbing(),
    MapSearch(),
    MapMembership(),
)
_QUICK_MAPS = MapInversion(local=(Patches(),))
_MORE_DECODERS = (Ridge(), KernelRidge(), NearestNeighbors(), Network(), Network(seed=1))

DEFAULT_ENGINE = "processes"
"""Where audits run that can be sent, and that take long enough."""

TIERS = MappingProxyType(
    {
        "quick": Tier(
            "quick",
            (
                Inversion(decoders=(Ridge(), KernelRidge()), pictures=False),
                Averaging(queries=(64,)),
                Reidentification(),
                Membership(),
                SequenceMembership(),
                TextExtraction(),
                OneRun(),
                AttributeRecovery(),
                PromptInversion(tokens=4, texts=24, rounds=1),
                *_OF_TEXTS,
                _QUICK_MAPS,
                MapMembership(),
                PositionAveraging(queries=16, numbers=2**22, reading=_QUICK_MAPS),
            ),
            _CHECKS,
            shadows=8,
            asks=130,
        ),
        "standard": Tier(
            "standard",
            (Inversion(), Averaging(), JitterAveraging(), *_ALSO, PositionAveraging()),
            (Memorization(), *_CHECKS),
            shadows=16,
            more_s=5.0,
            asks=1100,
            cascade=True,
        ),
        "full": Tier(
            "full",
            (
                Inversion(decoders=_MORE_DECODERS),
                Averaging(queries=(16, 256, 1024)),
                JitterAveraging(queries=1024),
                *_ALSO,
                PositionAveraging(queries=256, numbers=2**28),
            ),
            (Memorization(), *_CHECKS),
            shadows=64,
            more_s=30.0,
            asks=4000,
            cascade=True,
        ),
    }
)
"""By name: about ten seconds, about a minute, and minutes to hours."""


def as_tier(tier: "str | Tier") -> Tier:
    """Returns a tier by name, or as it is."""
    if isinstance(tier, Tier):
        return tier
    if not isinstance(tier, str) or tier not in TIERS:
        raise ConfigError(
            f"Expected tier to be one of {', '.join(TIERS)}, or a Tier; got {tier!r}."
        )
    return TIERS[tier]


@dataclass(frozen=True)
class Plan:
    """Says how an audit runs, as its settings asked for it and as its shields allow.

    shadows: how many are trained, by ``train`` or as reference models; 0 for none. stages: how
    many in each stage, the later ones guided by what the shield answers.
    """

    tier: Tier
    shadows: int
    train: Train | None
    engine: str | None
    workers: int | None
    cache: Cache | None
    stages: tuple[int, ...]

    @classmethod
    def of(
        cls,
        tier: str | Tier,
        *,
        attacks: Sequence[Attack] = (),
        train: Train | None = None,
        shadows: int | None = None,
        engine: str | None = None,
        workers: int | None = None,
        cache: str | Path | None = None,
    ) -> "Plan":
        """Checks the settings of an audit; raises ConfigError.

        attacks: beside the tier's.
        """
        _require_all(attacks, Attack, "attacks such as Timing(ask=...)")
        chosen = as_tier(tier)
        chosen = replace(chosen, attacks=(*chosen.attacks, *attacks))
        count = chosen.shadows if shadows is None else whole("shadows", shadows, low=0)
        if shadows is not None and 0 < count < MIN_SHADOWS:
            raise ConfigError(
                f"Expected at least {MIN_SHADOWS} shadows, or 0 for none; got {count}. "
                "Fewer say nothing of a single record."
            )
        if engine is not None:
            choice("engine", engine, ENGINES)
        return cls(chosen, count, train, engine, workers, cache_in(cache), (count,))

    def for_answers(self, *, at_positions: bool) -> "Plan":
        """Leaves out what reads answers at positions, where there are none."""
        if at_positions:
            return self
        attacks = tuple(attack for attack in self.tier.attacks if not attack.at_positions)
        checks = tuple(check for check in self.tier.checks if not check.at_positions)
        return replace(self, tier=replace(self.tier, attacks=attacks, checks=checks))

    def left_out(self, *, at_positions: bool) -> tuple[str, ...]:
        """Says in a line what the quick tier does not measure and the standard one does."""
        fuller = TIERS.get("standard")
        if self.tier.name != "quick" or fuller is None:
            return ()
        there = {type(part) for part in self.tier.measurements}
        missing = dict.fromkeys(
            part.metrics[0].title.removeprefix("{}: ")
            for part in fuller.measurements
            if type(part) not in there and part.metrics and (at_positions or not part.at_positions)
        )
        named = "; ".join(missing)
        return (f"left out by the quick tier: {named} (tier='standard' measures what applies)",)

    def for_shields(self, shields: Mapping[str, Shield]) -> "Plan":
        """Chooses the stages of the shadows, and the engine: processes, where these pay."""
        has_classes = shields[BARE].chain.layout.kind not in ("values", "embeddings")
        if self.cascade_fits and has_classes and len(protected(shields)) == 1:
            self = replace(self, stages=stages_of(self.shadows))
        if self.engine is not None:
            return self
        model = shields[BARE].model
        tensors = (*model.parameters(), *model.buffers())
        stays = self.tier.name == "quick" or any(tensor.device.type != "cpu" for tensor in tensors)
        stays = stays or bool(why_unsendable(dict(shields), self.train, self.tier.measurements))
        return replace(self, engine="inline" if stays else DEFAULT_ENGINE)

    @property
    def cascade_fits(self) -> bool:
        """Returns whether shadows are wanted in stages, and are enough and like the target."""
        return self.tier.cascade and self.train is not None and self.shadows >= MIN_CASCADE

    @property
    def is_inline(self) -> bool:
        """Returns whether all work runs in this process, one piece after another."""
        return self.engine == "inline"

    @property
    def at_once(self) -> int:
        """Counts the pieces of work that run at the same time."""
        return 1 if self.is_inline else self.workers or os.cpu_count() or 1

    @property
    def trains_shadows(self) -> bool:
        """Returns whether shadows are trained and a measurement needs them."""
        return self.shadows > 0 and any(part.needs_shadows for part in self.tier.measurements)

    @property
    def shadow_jobs(self) -> int:
        """Counts the pieces in which the shadows are trained."""
        return sum(math.ceil(size / trained_at_once(self.train)) for size in self.stages)


def protected(shields: Mapping[str, Shield]) -> list[Shield]:
    """Returns the shields that are judged: all but the bare model, unless it is alone."""
    return [shield for name, shield in shields.items() if name != BARE] or list(shields.values())
