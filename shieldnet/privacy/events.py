"""What a mechanism did to one row, apart from who judges it."""

import math
from dataclasses import dataclass

from shieldnet.privacy.price import Price


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


def event_of(price: Price) -> Event | None:
    """Returns the event that a price proves, the stronger of pure and Gaussian; None for neither.

    A price's mu follows from its pure epsilon where nothing better is known, and says less.
    """
    if price.mu == 0:
        return PureEvent(0.0)
    if math.isfinite(price.pure):
        return PureEvent(price.pure)
    return GaussianEvent(price.mu) if math.isfinite(price.mu) else None
