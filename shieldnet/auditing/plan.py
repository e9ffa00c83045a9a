"""How hard an audit tries: which attacks run, with how many shadows, in about what time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from shieldnet.attacks import (
    Attack,
    AttributeInference,
    AttributeRecovery,
    Averaging,
    ClassInversion,
    Extraction,
    Inversion,
    JitterAveraging,
    Membership,
    OneRun,
    Reidentification,
    StraightThrough,
    TableLearning,
)
from shieldnet.attacks.adversary.decoders import KernelRidge, NearestNeighbors, Network, Ridge
from shieldnet.checks import Attribution, Calibration, Masking, Memorization
from shieldnet.core.checks import whole
from shieldnet.core.errors import ConfigError
from shieldnet.gate.declared import require_declared


@dataclass(frozen=True)
class Tier:
    """Says what an audit runs. shadows: how many are trained; 0 leaves them out.

    more_s: seconds on two cores for one shield of a small model, beyond the quick tier's, measured;
    asks: answers about every row, of a shield with noise.
    """

    name: str
    attacks: tuple[Attack, ...]
    shadows: int = 0
    more_s: float = 0.0
    asks: int = 64

    def __post_init__(self) -> None:
        whole("shadows", self.shadows, low=0)
        for attack in self.attacks:
            if not isinstance(attack, Attack):
                raise ConfigError(f"Expected attacks such as Inversion(), got {attack!r}.")
            require_declared(attack)


_CHECKS = (Attribution(), Masking(), Calibration())
_ALSO = (
    TableLearning(),
    StraightThrough(),
    Reidentification(),
    Membership(),
    OneRun(),
    AttributeRecovery(),
    AttributeInference(),
    Extraction(),
    ClassInversion(),
    Memorization(),
    *_CHECKS,
)
_MORE_DECODERS = (Ridge(), KernelRidge(), NearestNeighbors(), Network(), Network(seed=1))

TIERS = MappingProxyType(
    {
        "quick": Tier(
            "quick",
            (
                Inversion(decoders=(Ridge(), KernelRidge()), pictures=False),
                Averaging(queries=(64,)),
                Reidentification(),
                Membership(),
                OneRun(),
                AttributeRecovery(),
                *_CHECKS,
            ),
            shadows=8,
            asks=130,
        ),
        "standard": Tier(
            "standard",
            (Inversion(), Averaging(), JitterAveraging(), *_ALSO),
            shadows=16,
            more_s=3.0,
            asks=1100,
        ),
        "full": Tier(
            "full",
            (
                Inversion(decoders=_MORE_DECODERS),
                Averaging(queries=(16, 256, 1024)),
                JitterAveraging(queries=1024),
                *_ALSO,
            ),
            shadows=64,
            more_s=30.0,
            asks=4000,
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


def told(seconds: float) -> str:
    """Writes a length of time for a person: about 40 s, about 3 min, about 2 h."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {max(1, seconds):.0f} s"


@dataclass(frozen=True)
class Load:
    """Says what an audit works on. rows: of all sets; owned: of the auxiliary ones.

    ask_s: seconds for one answer about every row, measured. pictures: whether pictures are drawn.
    reference_models: how many are trained; shadows by ``train`` are not foreseen.
    """

    rows: int
    owned: int
    features: int
    classes: int
    ask_s: float
    pictures: bool = False
    reference_models: int = 0


def estimate_s(tier: Tier, load: Load, *, shields: Sequence[bool], workers: int = 1) -> float:
    """Estimates how long an audit takes, to within a factor of two on two cores.

    shields: for each, whether it answers with noise. workers: how many work at once.
    Source: fitted to the table of benchmarks/cost.py.
    """
    owned, features, classes = load.owned, load.features, load.classes
    work = 0.4 + (min(owned, 1250) / 1250) ** 2 + 3.6 * (min(owned, 4000) / 4000) ** 3
    work += 2.5e-7 * load.rows * features + 3.3e-4 * min(features, 20_000)
    work += 2.2e-10 * classes**2 * features * min(owned, 2000)
    work += tier.more_s * (1 + min(features, 1000) / 470 + 10 * load.pictures * features / 3072)
    steps = min(max(1500, load.rows / 17), load.rows * 0.6)
    reference_s = steps * (0.0022 + 0.0045 * min(features, 512) / 512)
    waves = math.ceil(load.reference_models / 8 / workers)
    asking = sum(load.ask_s * (tier.asks if is_noisy else 25) for is_noisy in shields)
    return waves * reference_s + work * len(shields) + asking
