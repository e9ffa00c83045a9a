"""Lower bounds on mu and epsilon from canaries that do not affect each other."""

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from shieldnet.core.errors import ConfigError
from shieldnet.core.statistics import Interval, proportion
from shieldnet.privacy.guarantee import MAX_NOISE, Guarantee
from shieldnet.privacy.one_run_bounds import MAX_REPORTED

CONFIDENCE = 0.999
"""Confidence level of these intervals: the bounds are close to the claim, and a sound training is
refused if one exceeds it, so that must happen in at most one run of 2,000."""
_PRECISION = 3e-4  # of the noise


def guessed_by_sign(scores: Tensor, inside: Tensor) -> int:
    """Guesses that every canary with a score above 0 is in; returns the number of hits.

    The threshold is the best one under the claim if scores are its log likelihood ratios, and it
    does not depend on what was drawn.
    Shapes: scores (canaries,), inside (canaries,) bool.
    """
    return int(((scores > 0) == inside).sum())


def advantage_interval(right: int, canaries: int, confidence: float = CONFIDENCE) -> Interval:
    """Estimates the advantage of a guess about one canary; the low end is the lower bound.

    The advantage of a training is the largest TPR - FPR of any test of one record, from 0 to 1.
    Assumes: a fair draw decides whether a canary is in, and its score does not depend on the
    draws and the noise of others. A guess is then right with probability at most
    (1 + advantage) / 2, whatever the guesses before it, so the number of hits is dominated by a
    binomial one. Without independence it is not: a training may reveal all canaries, or none.
    Source: Clopper and Pearson 1934, for the binomial probability; docs/certificate.md, section 7.
    """
    found = proportion(right, canaries, confidence)
    value, low, high = (max(0.0, 2 * p - 1) for p in (found.value, found.low, found.high))
    return Interval(value, low, high)


def mu_of_advantage(advantage: float) -> float:
    """Returns mu of the Gaussian mechanism with this advantage: no mu-GDP training has more.

    Source: Dong, Roth, Su 2022 (arXiv:1905.02383), Section 2.3.
    """
    from scipy.special import ndtri

    return min(MAX_REPORTED, 2 * float(ndtri((1 + advantage) / 2)))


def epsilon_of_advantage(claimed: Guarantee, advantage: float) -> float:
    """Returns epsilon of the claimed training with as much noise as allows this advantage.

    Assumes: Gaussian noise and the claimed sampling, but any ratio of noise to sensitivity. Other
    mechanisms can have this advantage at a smaller epsilon.
    """
    from scipy.optimize import brentq

    def excess(log_noise: float) -> float:
        return _with_noise(claimed, math.exp(log_noise)).delta_at(0.0) - advantage

    if not advantage > 0:
        return 0.0
    low = high = math.log(claimed.noise_multiplier)
    while excess(high) > 0:
        if high + math.log(2) > math.log(MAX_NOISE):
            return 0.0
        high += math.log(2)
    while excess(low) < 0:
        reached = _with_noise(claimed, math.exp(low)).epsilon
        less = low - math.log(2)
        if reached >= MAX_REPORTED or not _is_countable(claimed, math.exp(less)):
            return min(MAX_REPORTED, reached)
        low = less
    found = low if low == high else brentq(excess, low, high, xtol=_PRECISION / 2)
    least = _with_noise(claimed, math.exp(found + _PRECISION))  # a little too much noise is safe
    return min(MAX_REPORTED, least.epsilon)


def mapped(interval: Interval, change: Callable[[float], float]) -> Interval:
    """Applies an increasing function to an estimate and to both ends of its interval."""
    return Interval(change(interval.value), change(interval.low), change(interval.high))


def _is_countable(claimed: Guarantee, noise: float) -> bool:
    """Returns whether the accountant can state epsilon with so little noise."""
    try:
        return math.isfinite(_with_noise(claimed, noise).epsilon)
    except ConfigError:  # in the thousands
        return False


def _with_noise(claimed: Guarantee, noise: float) -> Guarantee:
    return replace(claimed, noise_multiplier=noise, variation=0.0)
