"""Intervals and ranks: every measurement carries its uncertainty."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shieldnet.core.errors import DataError

CONFIDENCE = 0.95
"""Confidence level of every two-sided interval, unless stated otherwise."""

_SAME_SHARE = 1e-12
"""Standard deviations of a share below this count as 0."""
_EQUAL = 1e-6  # a smaller share means that both guesses are equal
MIN_SHARE = 1e-4
"""A share below this, including its deviation, may be float32 rounding of two equal guesses."""
_NEAR_END, _MIN_AUC_ROWS, _MIN_DIFFERING_ROWS = 0.05, 100, 10
"""Closer to 0 or 1, or with fewer or unequal rows, the variance of an AUC is poorly estimated."""


@dataclass(frozen=True)
class Interval:
    """Holds an estimate and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def proportion(successes: float, samples: int, confidence: float = CONFIDENCE) -> Interval:
    """Estimates a probability with its exact interval (Clopper and Pearson 1934).

    successes: may be fractional; a guess among three ties that include the truth counts 1/3.
    """
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    failures = samples - successes
    low = float(beta.ppf(tail, successes, failures + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, failures)) if failures > 0 else 1.0
    return Interval(successes / samples, low, high)


def difference(first: Interval, second: Interval) -> Interval:
    """Returns the interval of a difference of two independent shares.

    Source: Newcombe 1998, "Interval estimation for the difference", method 10, of these intervals.
    """
    value = first.value - second.value
    down = math.hypot(first.value - first.low, second.high - second.value)
    up = math.hypot(first.high - first.value, second.value - second.low)
    return Interval(value, max(-1.0, value - down), min(1.0, value + up))


def mean(
    values: Tensor,
    confidence: float = CONFIDENCE,
    *,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Estimates a mean with Student's interval, cut to the range that values have.

    Shapes: values (samples >= 2,).
    """
    from scipy.stats import t

    count = len(values)
    center, error = float(values.mean()), float(values.std()) / math.sqrt(count)
    reach = float(t.ppf((1 + confidence) / 2, count - 1)) * error
    lowest, highest = within
    center = min(max(center, lowest), highest)  # 1 + 1e-16 is a rounding
    return Interval(center, max(center - reach, lowest), min(center + reach, highest))


def saved_share(
    errors: Tensor,
    baseline: Tensor,
    *,
    seed: int,
    confidence: float = CONFIDENCE,
    resamples: int = 2000,
) -> Interval:
    """Estimates 1 - sum(errors) / sum(baseline) with a bootstrap interval over the samples.

    See ``saved_shares``. Shapes: errors and baseline (samples,).
    """
    columns = errors.unsqueeze(1), baseline.unsqueeze(1)
    return saved_shares(*columns, seed=seed, confidence=confidence, resamples=resamples)[0]


def saved_shares(
    errors: Tensor,
    baseline: Tensor,
    *,
    seed: int,
    confidence: float = CONFIDENCE,
    resamples: int = 2000,
) -> list[Interval]:
    """Estimates 1 - sum(errors) / sum(baseline) of every column, with intervals over the samples.

    Each end is the outer one of two bootstrap intervals: percentile, and studentized, which widens
    for few samples with skewed errors. The share is 0 if only rounding is saved, or if the baseline
    is 0. The interval of a single sample is [0, 1], since it shows no variation.
    Shapes: errors and baseline (samples, columns), not negative, of the same samples.
    Errors: DataError for values that are not finite.
    Source: percentile and studentized bootstrap, Efron and Tibshirani 1993, chapters 12 and 13.
    """
    count = len(errors)
    if not (errors.isfinite().all() and baseline.isfinite().all()):
        raise DataError("Expected finite errors, got NaN or Inf: their share cannot be computed.")
    weights = torch.from_numpy(
        np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=resamples)
    ).double()
    lost, whole = errors.double(), baseline.double()
    sums = weights @ lost, weights @ whole
    squares = [weights @ product for product in (lost * lost, lost * whole, whole * whole)]
    ratios = sums[0] / sums[1]
    spreads = (squares[0] - 2 * ratios * squares[1] + ratios**2 * squares[2]).clamp_min(0).sqrt()
    spreads = spreads / sums[1]
    return [
        _saved_share(
            lost[:, column], whole[:, column], ratios[:, column], spreads[:, column], confidence
        )
        for column in range(lost.shape[1])
    ]


def _saved_share(
    lost: Tensor, whole: Tensor, ratios: Tensor, spreads: Tensor, confidence: float
) -> Interval:
    """Estimates the share of one column. Shapes: twice (samples,), twice (resamples,)."""
    total = float(whole.sum())
    ratio = float(lost.sum()) / total if total else 1.0
    spread = float((lost - ratio * whole).norm()) / (total or 1.0)
    if total == 0 or abs(1 - ratio) + spread < MIN_SHARE:
        is_same = total == 0 or abs(1 - ratio) + spread < _EQUAL
        return Interval(0.0, 0.0, 0.0 if is_same else MIN_SHARE)
    if len(lost) == 1:
        return Interval(1 - ratio, min(0.0, 1 - ratio), 1.0)
    drawn = ratios.isfinite()  # the share of a resample of zeros is undefined
    resampled = ratios[drawn]
    ends = [_ends(resampled, confidence)]
    if spread > _SAME_SHARE:
        # Resamples without the few rows that vary do not show their variation.
        student = (resampled - ratio) / spreads[drawn].clamp_min(spread / 2)
        low, high = _ends(student, confidence)
        ends.append((ratio - high * spread, ratio - low * spread))
    low = min(low for low, _ in ends)
    high = max(high for _, high in ends)
    return Interval(1 - ratio, 1 - max(high, ratio), 1 - max(0.0, min(low, ratio)))


def _ends(values: Tensor, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values.numpy(), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def auc(positives: Tensor, negatives: Tensor, confidence: float = CONFIDENCE) -> Interval:
    """Estimates P[positive > negative] + P[equal] / 2 with DeLong's interval, on the logit scale.

    DeLong's variance is unreliable if it is based on few rows: near 0 and 1, below 100 rows, or if
    nearly all scores are equal. The interval is then extended to Newcombe's, which needs no
    variance; and without any variation (perfect separation, or only ties) to the exact interval of
    that many successes in min(m, n) trials. With a single row, or none, it is [0, 1].

    Shapes: positives (m,), negatives (n,).
    Errors: DataError for NaN.
    Source: DeLong, DeLong, Clarke-Pearson 1988; Newcombe 2006, method 5; Clopper, Pearson 1934.
    """
    if positives.isnan().any() or negatives.isnan().any():
        raise DataError("Expected scores without NaN, which has no rank, got NaN.")
    if min(len(positives), len(negatives)) < 2:
        return Interval(0.5, 0.0, 1.0)
    wins = _placements(positives, negatives)
    losses = 1 - _placements(negatives, positives)
    value = float(wins.mean())
    variance = float(wins.var() / len(wins) + losses.var() / len(losses))
    smaller = min(len(wins), len(losses))
    reach = normal_quantile(confidence)
    if variance == 0:
        ends = [proportion(round(value * smaller), smaller, confidence)]
    else:
        odds = math.log(value / (1 - value))
        width = reach * math.sqrt(variance) / (value * (1 - value))
        ends = [Interval(value, _logistic(odds - width), _logistic(odds + width))]
    differ = min(
        int((placements != placements.mode().values).sum()) for placements in (wins, losses)
    )
    if min(value, 1 - value) < _NEAR_END or smaller < _MIN_AUC_ROWS or differ < _MIN_DIFFERING_ROWS:
        ends.append(_newcombe(value, len(wins), len(losses), reach))
    return Interval(
        value, min(value, *(end.low for end in ends)), max(value, *(end.high for end in ends))
    )


def _logistic(odds: float) -> float:
    return 1 / (1 + math.exp(-odds)) if odds > 0 else math.exp(odds) / (1 + math.exp(odds))


def _newcombe(value: float, ones: int, others: int, reach: float) -> Interval:
    """Returns Newcombe's interval of an AUC, under the model of exponential scores."""
    from scipy.optimize import brentq

    pairs, more = ones * others, (ones + others) / 2 - 1

    def beyond(true: float) -> float:
        spread = 1 + more * ((1 - true) / (2 - true) + true / (1 + true))
        return (value - true) ** 2 - reach**2 * true * (1 - true) * spread / pairs

    edge = 1e-12
    low = brentq(beyond, edge, value) if value > edge and beyond(edge) > 0 else 0.0
    high = brentq(beyond, value, 1 - edge) if value < 1 - edge and beyond(1 - edge) > 0 else 1.0
    return Interval(value, low, high)


def rows_needed(fpr: float) -> int:
    """Returns the number of negatives needed to estimate a false-positive rate: 3 / fpr.

    Source: the rule of three; with no event in n trials, the rate is at most 3 / n (95%).
    """
    return math.ceil(3 / fpr - 1e-9)


def tpr_at_fpr(
    positives: Tensor, negatives: Tensor, fpr: float, confidence: float = CONFIDENCE
) -> Interval | None:
    """Estimates the true-positive rate at ``fpr``, or returns None if n is too small.

    The threshold is the smallest that at most a share of fpr of the negatives exceeds; the rate is
    the share of positives that exceed it, without ties. The interval accounts for the estimated
    threshold: its lower end uses a threshold whose false-positive rate is at most fpr with high
    confidence (half of the error), and is 0 if there are too few negatives for one.

    Shapes: positives (m,), negatives (n,).
    Source: order statistics of n uniforms are Beta distributed; Clopper and Pearson 1934.
    """
    from scipy.stats import beta

    count = len(negatives)
    if count < rows_needed(fpr):
        return None
    ordered = negatives.sort(descending=True).values
    error = (1 - confidence) / 4  # per side and cause
    # The rate of a threshold that j of n negatives exceed is distributed as Beta(j + 1, n - j).
    exceeded = np.arange(count)
    above = beta.sf(fpr, exceeded + 1, count - exceeded)
    strict = int((above <= error).sum()) - 1
    lenient = int((1 - above > error).sum())

    def rate(rank: int) -> Interval:
        hits = int((positives > ordered[rank]).sum()) if rank < count else len(positives)
        return proportion(hits, len(positives), 1 - 2 * error)

    low = rate(strict).low if strict >= 0 else 0.0
    value = rate(int(fpr * count)).value
    return Interval(value, min(low, value), max(rate(lenient).high, value))


@dataclass(frozen=True)
class Curve:
    """Holds a ROC curve with a band: the true-positive rate at each false-positive rate.

    For calibration: the share of correct answers (tpr) at each confidence (fpr).
    """

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def read(cls, document: Mapping[str, Sequence[float]]) -> "Curve":
        """Restores a curve from a document written by ``dataclasses.asdict``."""
        return cls(*(tuple(document[name]) for name in ("fpr", "tpr", "low", "high")))


def roc(
    positives: Tensor, negatives: Tensor, *, points: int = 40, confidence: float = CONFIDENCE
) -> Curve:
    """Estimates the true-positive rate at rates from the smallest that n supports up to 1.

    Each point is a ``tpr_at_fpr`` with its own interval: the band holds pointwise, for a rate
    chosen beforehand, not for the whole curve at once.

    Shapes: positives (m,), negatives (n,); n >= 3.
    """
    least = min(1.0, 3 / len(negatives))
    rates = sorted({round(float(rate), 9) for rate in np.geomspace(least, 1, points)})
    estimates = [
        (rate, interval)
        for rate in (*rates[:-1], 1.0)
        if (interval := tpr_at_fpr(positives, negatives, rate, confidence)) is not None
    ]
    return Curve(
        tuple(rate for rate, _ in estimates),
        *(
            tuple(round(getattr(interval, end), 6) for _, interval in estimates)
            for end in ("value", "low", "high")
        ),
    )


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Returns Spearman's rank correlation, NaN if an input is constant. Shapes: (n,), (n,)."""
    ranks = torch.stack([midranks(first), midranks(second)])
    return float(torch.corrcoef(ranks)[0, 1])


def random_sums(known: Tensor, width: int) -> Tensor:
    """Returns a random projection that approximately preserves sizes and distances.

    Shapes: (rows, features) -> (rows, at most ``width``).
    Source: Johnson and Lindenstrauss 1984.
    """
    if known.shape[1] <= width:
        return known
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(known.shape[1], width, generator=generator) / known.shape[1] ** 0.5
    return known.matmul(weights.to(known.dtype))


def _placements(ones: Tensor, others: Tensor) -> Tensor:
    """Returns, for each of ``ones``, the share of ``others`` below it; ties count half."""
    ordered = others.sort().values
    below = torch.searchsorted(ordered, ones.contiguous(), right=False)
    up_to = torch.searchsorted(ordered, ones.contiguous(), right=True)
    return (below + up_to).double() / (2 * len(others))


def midranks(values: Tensor) -> Tensor:
    """Returns the share of values below each, ties counted by half. Shapes: (rows,) -> same."""
    return _placements(values, values)


def normal_share(deviations: float) -> float:
    """Returns the standard normal cumulative distribution at ``deviations``."""
    return (1 + math.erf(deviations / math.sqrt(2))) / 2


def normal_quantile(confidence: float) -> float:
    """Returns z such that a standard normal number lies in [-z, z] with this probability."""
    return math.sqrt(2) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64)))
