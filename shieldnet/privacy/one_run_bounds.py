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
    Metric(
        "one_run.independent.mu",
        "mu by independent canaries",
        "more",
        ungated=_PROVEN,
        standards=_PRIVATE,
    ),
    Metric(
        "one_run.gaussian.epsilon",
        "epsilon by independent canaries in Gaussian noise",
        "more",
        ungated=_PROVEN,
        standards=_PRIVATE,
    ),
)
"""Metrics that ``finetune`` measures in its own training run."""

MAX_REPORTED = 64.0
"""Largest epsilon and mu that are reported, when every guess was right."""
_TAIL = 0.025
"""Level of the bounds that guesses are chosen for."""
_SHARES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.35, 0.5, 0.7, 1.0)
"""Shares of the canaries that may be guessed."""
_MANY = 200
"""From so many guesses on, their expected number of hits is not rounded by much."""


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
    value, low, high = (
        least_epsilon(right, guesses, canaries, delta, level) for level in (0.5, tail, 1 - tail)
    )
    return Interval(value, low, max(value, high))


def least_epsilon(right: int, guesses: int, canaries: int, delta: float, level: float) -> float:
    """Returns the largest epsilon under which so many hits are no likelier than ``level``."""
    return _largest(lambda e: _chance(right, guesses, canaries, e, delta) <= level)


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
    value, low, high = (
        least_mu(right, guesses, canaries, level) for level in (0.5, tail, 1 - tail)
    )
    return Interval(value, low, max(value, high))


def least_mu(right: int, guesses: int, canaries: int, level: float) -> float:
    """Returns the largest mu that makes so many correct guesses less likely than ``level``."""
    from scipy.special import ndtr, ndtri

    def is_refuted(mu: float) -> bool:
        return refutes(lambda rate: float(ndtr(ndtri(rate) - mu)), right, guesses, canaries, level)

    return _largest(is_refuted)


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
        if wrong + hit > guesses / canaries:  # neither ever falls
            return True
        if wrong == before:  # nor rises any more
            return False
    return False


def best_guesses(mu: float, canaries: int, delta: float) -> int:
    """Chooses the number of guesses with the largest expected bound, from the claimed mu alone."""

    def shown(right: int, guesses: int) -> float:
        return least_epsilon(right, guesses, canaries, delta, _TAIL)

    return _best_guesses(mu, canaries, shown)


def best_guesses_for_mu(mu: float, canaries: int) -> int:
    """Chooses the number of guesses with the largest expected mu, from the claimed mu alone.

    The bound of mu is shown best by fewer guesses than that of epsilon.
    """

    def shown(right: int, guesses: int) -> float:
        return least_mu(right, guesses, canaries, _TAIL)

    return _best_guesses(mu, canaries, shown)


def _best_guesses(mu: float, canaries: int, shown: Callable[[int, int], float]) -> int:
    from scipy.stats import norm

    grid = np.linspace(-8, 8 + mu, 4001)
    above_in, above_out = norm.sf(grid - mu), norm.sf(grid)
    best, highest = canaries, 0.0
    for share in _SHARES:
        guesses = max(2, 2 * round(share * canaries / 2))
        at = int(np.argmin(np.abs((above_in + above_out) / 2 - share / 2)))
        hit = above_in[at] / (above_in[at] + above_out[at])
        bound = shown(int(hit * guesses), guesses)
        if bound > highest:
            best, highest = guesses, bound
        elif guesses >= _MANY and bound < highest:
            break  # more guesses show less and less
    return best


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
    while is_refuted(high) and high < MAX_REPORTED:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low
