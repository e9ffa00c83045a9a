"""Privacy events: what a mechanism did to one row, independent of the accountant."""

import math
from dataclasses import dataclass

from shieldnet.privacy.cost import PrivacyCost


@dataclass(frozen=True)
class GaussianEvent:
    """Describes a mechanism that is mu-Gaussian differentially private."""

    mu: float


@dataclass(frozen=True)
class PureEvent:
    """Describes a mechanism that is known only to be (epsilon, 0)-differentially private."""

    epsilon: float


@dataclass(frozen=True)
class RandomizedResponseEvent:
    """Describes one of ``symbols``, true with chance e^epsilon / (e^epsilon + symbols - 1)."""

    epsilon: float
    symbols: int


Event = GaussianEvent | PureEvent | RandomizedResponseEvent


def event_of(cost: PrivacyCost) -> Event | None:
    """Returns the strongest event that a cost proves: pure, else Gaussian; None for neither.

    The mu of a pure mechanism follows from its epsilon and is the weaker statement.
    """
    if cost.mu == 0:
        return PureEvent(0.0)
    if math.isfinite(cost.pure):
        return PureEvent(cost.pure)
    return GaussianEvent(cost.mu) if math.isfinite(cost.mu) else None
