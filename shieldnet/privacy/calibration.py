"""Calibration: the noise that an epsilon requires."""

import math
from collections.abc import Callable
from functools import lru_cache

from shieldnet.core.checks import positive, whole
from shieldnet.core.errors import ConfigError
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.privacy.guarantee import MAX_NOISE
from shieldnet.privacy.steps import MAX_STEPS, Steps


@lru_cache(maxsize=256)
def calibrate_noise(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Returns the noise, as a multiple of the clip norm, that meets epsilon at delta.

    Guarantee: the returned noise has an epsilon of at most ``epsilon``, at most 0.2% below it.
    Errors: ConfigError if that takes too many steps, or too much noise to learn anything.
    """
    from shieldnet.privacy.losses import Losses

    positive("epsilon", epsilon)
    whole("steps", steps, low=1, high=MAX_STEPS)

    def spent(noise: float) -> float:
        if rate == 1:
            return PrivacyCost(mu=math.sqrt(steps) / noise).epsilon(delta)
        try:
            return Losses((Steps(noise, rate, steps),)).epsilon(delta)
        except ConfigError:  # epsilon is too large to compute
            return math.inf

    least, most = _bracket(spent, epsilon, start=max(0.3, rate * math.sqrt(steps) / epsilon))
    return _least_noise(spent, epsilon, least, most, slack=1e-6 if rate == 1 else 2e-3)


def _bracket(
    spent: Callable[[float], float], epsilon: float, start: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Finds a noise that exceeds epsilon and one that meets it, each with its own epsilon."""
    noise = min(start, MAX_NOISE)
    cost = spent(noise)
    too_much = cost > epsilon
    while True:
        neighbor = min(MAX_NOISE, noise * 1.6) if too_much else noise / 1.6
        if neighbor == noise:
            raise ConfigError(
                f"No noise of at most {MAX_NOISE:g} x clip norm meets epsilon {epsilon:g}. Take "
                "fewer steps, or a larger epsilon."
            )
        if neighbor < 1e-6:
            raise ConfigError(
                f"Expected an epsilon that requires noise, got {epsilon:g}. Take a smaller epsilon."
            )
        moved_cost = spent(neighbor)
        if (moved_cost > epsilon) != too_much:
            pair = (noise, cost), (neighbor, moved_cost)
            return pair if too_much else (pair[1], pair[0])
        noise, cost = neighbor, moved_cost


def _least_noise(
    spent: Callable[[float], float],
    epsilon: float,
    least: tuple[float, float],
    most: tuple[float, float],
    slack: float,
) -> float:
    """Searches between two noises, by interpolating the logarithms of their epsilons."""
    aim = (1 - slack / 4) * epsilon
    for attempt in range(60):
        (low, low_cost), (high, high_cost) = least, most
        if high_cost > (1 - slack) * epsilon or high / low < 1 + slack / 1e3:
            break
        is_line = high_cost > 0 and math.isfinite(low_cost) and attempt % 3 < 2
        if is_line:
            slope = math.log(high / low) / math.log(high_cost / low_cost)
            noise = high * math.exp(slope * math.log(aim / high_cost))
            noise = min(max(noise, low * (high / low) ** 0.02), high * (low / high) ** 0.02)
        else:
            noise = math.sqrt(low * high)
        cost = spent(noise)
        if cost > epsilon:
            least = (noise, cost)
        else:
            most = (noise, cost)
    return most[0]
