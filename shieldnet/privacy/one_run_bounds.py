"""Lower bounds on epsilon, measured in a single training run with random canaries."""

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from shieldnet.core.errors import ConfigError
from shieldnet.core.statistics import Interval
from shieldnet.findings.finding import Finding, Threat
from shieldnet.findings.metrics import Metric

_PROVEN = "a measured lower bound above the proven one fails every policy, without a limit"
_PRIVATE = ("AISVS 11.2.4",)
RECORDS_EPSILON = Metric(
    "one_run.records.epsilon", "epsilon by records", "more", ungated=_PROVEN, standards=_PRIVATE
)
METRICS = (
    Metric("one_run.epsilon", "epsilon by canaries", "more", ungated=_PROVEN, standards=_PRIVATE),
    Metric("one_run.mu", "mu by canaries", "more", ungated=_PROVEN, standards=_PRIVATE),
)
"""Metrics that ``finetune`` measures in its own training run."""

_MAX_EPSILON = 64.0
"""Largest epsilon and mu that are reported, when every guess was right."""


def guessed(scores: Tensor, inside: Tensor, guesses: int) -> int:
    """Guesses that the highest scores are in and the lowest out; returns the number of hits.

    guesses: number of guesses, half of each kind. Choose it before seeing the scores: chosen
    afterwards, it finds an epsilon where there is none. Ties are broken by index, which does not
    depend on the draws.
    Shapes: scores (canaries,), inside (canaries,) bool.
    """
    if not 2 <= guesses <= len(scores):
        raise ConfigError(f"Expected 2 to {len(scores)} guesses, got {guesses}.")
    order = scores.sort(descending=True, stable=True).indices
    top, bottom = order[: guesses // 2], order[len(order) - (guesses - guesses // 2) :]
    return int(inside[top].sum() + (~inside[bottom]).sum())


def epsilon_interval(
    right: int, guesses: int, canaries: int, delta: float, confidence: float = 0.95
) -> Interval:
    """Estimates epsilon from the number of correct guesses; the low end is the lower bound.

    The value and the upper end are the same test at other levels: they show how precise this audit
    is, not how large epsilon can be.
    Source: Steinke, Nasr, Jagielski 2023 (arXiv:2305.08846), Theorem 5.2.
    """
    tail = (1 - confidence) / 2

    def least(level: float) -> float:
        return _largest(lambda e: _chance(right, guesses, canaries, e, delta) <= level)

    return Interval(least(0.5), least(tail), max(least(0.5), least(1 - tail)))


def epsilon_finding(
    name: str,
    right: int,
    guesses: int,
    canaries: int,
    delta: float,
    *,
    claimed: float,
    threat: Threat,
    scoring: str,
) -> Finding:
    """Makes a finding of ``epsilon_interval``.

    claimed: the proven epsilon. scoring: how records were scored.
    """
    return Finding.of(
        name,
        epsilon_interval(right, guesses, canaries, delta),
        samples=canaries,
        baseline=0.0,
        threat=threat,
        source=f"Steinke et al. 2023, Theorem 5.2; {scoring}",
        ceiling=claimed,
        note=f"{right} of {guesses} guesses right; the low end is the lower bound",
    )


def mu_interval(right: int, guesses: int, canaries: int, confidence: float = 0.95) -> Interval:
    """Estimates mu of Gaussian differential privacy, as ``epsilon_interval`` does epsilon.

    The lower bound holds for any mu-GDP mechanism. It bounds epsilon only if the mechanism is
    Gaussian; otherwise the epsilon derived from it can exceed the true one.
    Source: Mahloujifar, Melis, Chaudhuri 2024 (arXiv:2410.22235), Algorithm 3.
    """
    tail = (1 - confidence) / 2

    def least(level: float) -> float:
        return _largest(
            lambda mu: refutes(lambda x: _gaussian_inverse(x, mu), right, guesses, canaries, level)
        )

    return Interval(least(0.5), least(tail), max(least(0.5), least(1 - tail)))


def refutes(
    inverse: Callable[[float], float], right: int, guesses: int, canaries: int, level: float
) -> bool:
    """Returns whether a trade-off curve makes so many correct guesses less likely than ``level``.

    inverse: the smallest false-positive rate at which the curve allows a true-positive rate.
    Source: Mahloujifar, Melis, Chaudhuri 2024, Algorithm 3, for bits (an alphabet of two).
    """
    if right <= 0:
        return False
    share = level * guesses / canaries
    wrong, hit = share * (guesses - right) / guesses, share * right / guesses
    for correct in range(right - 1, -1, -1):
        before = wrong
        wrong = max(wrong, inverse(min(hit, 1.0)))
        hit += correct / (guesses - correct) * (wrong - before)
    return wrong + hit > guesses / canaries


def best_guesses(mu: float, canaries: int, delta: float) -> int:
    """Chooses the number of guesses with the largest expected bound, from the claimed mu alone."""
    from scipy.stats import norm

    grid = np.linspace(-8, 8 + mu, 4001)
    above_in, above_out = norm.sf(grid - mu), norm.sf(grid)
    best, highest = canaries, 0.0
    for share in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0):
        guesses = max(2, 2 * round(share * canaries / 2))
        at = int(np.argmin(np.abs((above_in + above_out) / 2 - share / 2)))
        hit = above_in[at] / (above_in[at] + above_out[at])
        shown = epsilon_interval(int(hit * guesses), guesses, canaries, delta).low
        if shown > highest:
            best, highest = guesses, shown
    return best


def _gaussian_inverse(rate: float, mu: float) -> float:
    from scipy.special import ndtr, ndtri

    return float(ndtr(ndtri(rate) - mu))


def _chance(right: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """Returns the largest probability of so many correct guesses under (epsilon, delta)-privacy."""
    from scipy.stats import binom

    rate = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, rate))
    if right == 0 or delta == 0:
        return min(1.0, tail)
    steps = np.arange(1, right + 1)
    heaped = np.cumsum(binom.pmf(right - steps, guesses, rate))
    return min(1.0, tail + 2 * canaries * delta * float((heaped / steps).max()))


def _largest(is_refuted: Callable[[float], bool]) -> float:
    """Finds the largest refuted value, or 0 if none is; all smaller values are refuted too."""
    if not is_refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while is_refuted(high) and high < _MAX_EPSILON:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low
