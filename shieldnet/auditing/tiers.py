"""How hard an audit tries: which attacks run, with how many shadows, in about what time."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from shieldnet._validate import whole
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
from shieldnet.attacks.decoders import KernelRidge, NearestNeighbors, Network, Ridge
from shieldnet.checks import Attribution, Calibration, Masking, Memorization
from shieldnet.errors import ConfigError


@dataclass(frozen=True)
class Tier:
    """Says what an audit runs. shadows: how many are trained; 0 leaves them out.

    base_s: seconds on two cores for one shield of a small model over 850 auxiliary rows of 64
    features, measured; asks: answers about every row, of a shield with noise.
    """

    name: str
    attacks: tuple[Attack, ...]
    shadows: int = 0
    base_s: float = 5.0
    asks: int = 64

    def __post_init__(self) -> None:
        whole("shadows", self.shadows, low=0)
        for attack in self.attacks:
            if not isinstance(attack, Attack):
                raise ConfigError(f"Expected attacks such as Inversion(), got {attack!r}.")


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
            base_s=3.0,
            asks=130,
        ),
        "standard": Tier(
            "standard",
            (Inversion(), Averaging(), JitterAveraging(), *_ALSO),
            shadows=16,
            base_s=20.0,
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
            base_s=60.0,
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


def estimate_s(
    tier: Tier, *, shields: Sequence[bool], rows: int, features: int, ask_s: float
) -> float:
    """Estimates how long an audit takes, to within a factor of two or so.

    shields: for each, whether it answers with noise. rows: of all sets; ask_s: seconds for one
    answer about every row, measured.
    """
    work = tier.base_s * (0.3 + 0.7 * rows / 1800) * (0.8 + 0.2 * features / 64)
    return sum(work + ask_s * (tier.asks if is_noisy else 25) for is_noisy in shields)
