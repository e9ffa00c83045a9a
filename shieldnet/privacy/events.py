"""What a mechanism did to one row, apart from who judges it."""

import math
from dataclasses import dataclass

from shieldnet.privacy.cost import PrivacyCost


@dataclass(frozen=True)
class GaussianEvent:
    """Gaussian noise, or whatever two worlds tell no better apart: mu of Gaussian privacy."""

    mu: float


@dataclass(frozen=True)
class PureEvent:
    """A mechanism of (epsilon, 0)-differential privacy of which no more is known."""

    epsilon: float


@dataclass(frozen=True)
class RandomizedResponseEvent:
    """One of ``symbols``, the true one with chance e^epsilon / (e^epsilon + symbols - 1)."""

    epsilon: float
    symbols: int


Event = GaussianEvent | PureEvent | RandomizedResponseEvent


def event_of(cost: PrivacyCost) -> Event | None:
    """Returns the event that a cost proves, the stronger of pure and Gaussian; None for neither.

    A privacy cost's mu follows from its pure epsilon where nothing better is known, and says less.
    """
    if cost.mu == 0:
        return PureEvent(0.0)
    if math.isfinite(cost.pure):
        return PureEvent(cost.pure)
    return GaussianEvent(cost.mu) if math.isfinite(cost.mu) else None
