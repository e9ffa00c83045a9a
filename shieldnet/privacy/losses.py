"""Privacy losses of many noisy sums, composed on a grid with all rounding against the claim."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import lfilter
from scipy.special import ndtr, ndtri

from shieldnet.core.errors import ConfigError
from shieldnet.privacy.steps import MAX_LOSS, Steps, require_countable

Floats = NDArray[Any]
Direction = Literal["added", "removed"]
DIRECTIONS: tuple[Direction, ...] = ("added", "removed")

_POINTS, _MAX_POINTS = 2**13, 2**16  # of one step's losses
_MAX_SIZE = 2**22  # of the losses of all steps
_FINENESS = 0.02  # of a step's deviation: rounding adds about .01% to the variance
_MIN_COARSENESS = 1e-4  # of the root of the steps: all of their rounding is finer than that
_TAIL = 1e-15
_RAISED = 1e-9
_MIN_DELTA = 1e-10  # of a curve
_MARGIN = 1e-6  # of a cell's mass, moved up: it covers what floats lose where two masses cancel
_SLACK = 1e-9  # of delta: what adding up positive numbers loses
_ROUNDING = 4 * float(np.finfo(np.float64).eps)


class Losses:
    """Computes upper bounds on epsilon and delta of many steps.

    A step's privacy loss is discretized so that each cell keeps its mass under both neighbors (it
    moves to the cell's two ends), which only raises delta. The losses are summed by a Fourier
    transform, tilted so that the rounding error is small relative to the requested delta; that
    error is added to delta.
    coarseness: factor on the grid step; a coarser grid is faster and gives looser bounds.
    Source: Doroshenko et al. 2022 (connect the dots); Koskela et al. 2020 (Fourier transform).
    """

    def __init__(self, steps: Sequence[Steps], coarseness: float = 1.0) -> None:
        require_countable(steps)
        self.steps = tuple(step for step in steps if step.count)
        self.coarseness = coarseness

    def epsilon(self, delta: float) -> float:
        """Returns epsilon at a delta; inf if floats cannot represent it."""
        if self.steps and not delta > 0:
            return math.inf
        return max((total.epsilon(delta) for total in self._sums), default=0.0)

    def delta(self, epsilon: float) -> float:
        """Returns delta at an epsilon >= 0."""
        return max((total.delta(epsilon) for total in self._sums), default=0.0)

    def curve(self, points: int = 400) -> tuple[Floats, Floats]:
        """Samples (epsilon, delta) from epsilon 0 to where delta is 1e-10."""
        last = self.epsilon(_MIN_DELTA)
        epsilons = np.linspace(0.0, last if math.isfinite(last) else MAX_LOSS, points)
        deltas = [total.deltas(epsilons) for total in self._sums] or [np.zeros(points)]
        return epsilons, np.max(deltas, axis=0)

    @cached_property
    def _sums(self) -> tuple["_Sum", ...]:
        if not self.steps:
            return ()
        return tuple(_Sum(self.steps, direction, self.coarseness) for direction in DIRECTIONS)


class _Sum:
    """Sums the losses of all steps, for a record that was added or removed."""

    def __init__(self, steps: Sequence[Steps], direction: Direction, coarseness: float) -> None:
        interval = coarseness * _interval(steps, direction)
        self.counts = [step.count for step in steps]
        self.losses = [_step_losses(step, interval, direction) for step in steps]
        self.interval = interval
        self.infinite = sum(
            count * loss.infinite for count, loss in zip(self.counts, self.losses, strict=True)
        )
        self._tilted: dict[float, _Tail] = {}

    def epsilon(self, delta: float) -> float:
        return self._at(self._tilt(math.log(delta))).epsilon(delta)

    def delta(self, epsilon: float) -> float:
        return float(self.deltas(np.array([epsilon]))[0])

    def deltas(self, epsilons: Floats) -> Floats:
        """Returns the smallest delta that a few tilts prove."""
        tilts = (0.0, self._tilt(math.log(1e-4)), self._tilt(math.log(_MIN_DELTA)))
        bounds = [self._at(tilt).deltas(epsilons) for tilt in tilts]
        least: Floats = np.min(bounds, axis=0)
        return least

    def log_moment(self, tilt: float) -> tuple[float, float]:
        """Returns log E e^(tilt x loss) over all steps, and the mean loss under the tilt."""
        parts = [loss.log_moment(tilt) for loss in self.losses]
        return (
            sum(count * log for count, (log, _) in zip(self.counts, parts, strict=True)),
            sum(count * mean for count, (_, mean) in zip(self.counts, parts, strict=True)),
        )

    def _tilt(self, log_delta: float) -> float:
        """Returns half the tilt under which losses with this delta are typical.

        Half the tilt achieves three quarters of the effect and keeps the tails of the sum short.
        """
        low, high = 0.0, 1e-3
        for _ in range(60):
            log, mean = self.log_moment(high)
            if log - high * mean <= log_delta or high > 1e6:
                break
            low, high = high, 2 * high
        for _ in range(6):
            middle = (low + high) / 2
            log, mean = self.log_moment(middle)
            low, high = (middle, high) if log - middle * mean > log_delta else (low, middle)
        return low / 2

    def _at(self, tilt: float) -> "_Tail":
        if tilt not in self._tilted:
            self._tilted[tilt] = self._composed(tilt)
        return self._tilted[tilt]

    def _composed(self, tilt: float) -> "_Tail":
        log, mean = self.log_moment(tilt)
        below, above = (self._reach(tilt, log, mean, side) for side in (-1, 1))
        widest = max(len(loss.masses) for loss in self.losses)
        size = next_fast_len(max(2 * widest, math.ceil((below + above) / self.interval) + 4), True)
        if size > _MAX_SIZE:
            raise ConfigError(
                f"The privacy losses of {sum(self.counts)} steps need a grid of {size} numbers, "
                f"more than {_MAX_SIZE}. Take more noise, fewer steps, or all records in each step."
            )
        spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
        center = 0
        for count, loss in zip(self.counts, self.losses, strict=True):
            masses = loss.tilted(tilt)
            middle = round(float(masses @ np.arange(len(masses))))
            center += count * (loss.first + middle)
            transform = rfft(np.roll(np.pad(masses, (0, size - len(masses))), -middle))
            spectrum *= np.abs(transform) ** count * np.exp(1j * count * np.angle(transform))
        first = -math.ceil(below / self.interval) - 2 + round(mean / self.interval) - center
        masses = np.roll(irfft(spectrum, size), -first)
        power = math.sqrt(2 * float((np.abs(spectrum) ** 2).sum()))
        lost = _ROUNDING * (sum(self.counts) + 1) * math.log2(size) * power + 4 * _TAIL
        return _Tail(
            self.interval, center + first, np.maximum(masses, 0), tilt, log, lost, self.infinite
        )

    def _reach(self, tilt: float, log: float, mean: float, side: int) -> float:
        """Bounds how far from the mean all but a tail of the tilted sum lies (Chernoff)."""
        if side > 0:
            ends = [loss.first + len(loss.masses) - 1 for loss in self.losses]
        else:
            ends = [loss.first for loss in self.losses]
        most = self.interval * sum(c * e for c, e in zip(self.counts, ends, strict=True))
        reach = side * (most - mean)
        for order in self._orders(tilt):
            shifted, _ = self.log_moment(tilt + side * order)
            reach = min(reach, (shifted - log - math.log(_TAIL)) / order - side * mean)
        return max(reach, 0.0)

    def _orders(self, tilt: float) -> Floats:
        variance = sum(
            count * loss.variance(tilt)
            for count, loss in zip(self.counts, self.losses, strict=True)
        )
        widest = self.interval * max(len(loss.masses) for loss in self.losses)
        by_variance = 8 / math.sqrt(max(variance, self.interval**2)) * 2.0 ** np.arange(-5, 2)
        return np.concatenate([by_variance, np.array([2.0, 6.0, 20.0, 60.0]) / widest])


@dataclass(frozen=True)
class _StepLosses:
    """Holds the losses of one step on a grid: ``masses`` from the point number ``first`` on."""

    interval: float
    first: int
    masses: Floats
    infinite: float

    @cached_property
    def values(self) -> Floats:
        return self.interval * (self.first + np.arange(len(self.masses)))

    @cached_property
    def _logs(self) -> Floats:
        with np.errstate(divide="ignore"):
            logs: Floats = np.log(self.masses)
        return logs

    def tilted(self, tilt: float) -> Floats:
        exponents = self._logs + tilt * self.values
        weights = _exp(exponents - exponents.max())
        tilted: Floats = weights / weights.sum()
        return tilted

    def log_moment(self, tilt: float) -> tuple[float, float]:
        exponents = self._logs + tilt * self.values
        most = float(exponents.max())
        weights = _exp(exponents - most)
        total = float(weights.sum())
        return most + math.log(total), float(weights @ self.values) / total

    def variance(self, tilt: float) -> float:
        masses = self.tilted(tilt)
        mean = float(masses @ self.values)
        return float(masses @ (self.values - mean) ** 2)


@dataclass(frozen=True)
class _Tail:
    """Holds the tilted losses of all steps, and the delta that they prove.

    lost: bounds the error of a sum of masses, from rounding and from tails that wrapped around.
    """

    interval: float
    first: int
    masses: Floats
    tilt: float
    log: float
    lost: float
    infinite: float

    def epsilon(self, delta: float) -> float:
        epsilons, totals = self._totals
        index = int(np.searchsorted(-totals, -delta))  # the first that is small enough
        if index == len(totals):
            return math.inf
        if index == 0:
            return max(0.0, float(epsilons[0]))
        share = (totals[index - 1] - delta) / (totals[index - 1] - totals[index])
        # Between two points delta is a line in e^epsilon.
        return max(0.0, float(epsilons[index - 1] + _part_of(self.interval, share)))

    def deltas(self, epsilons: Floats) -> Floats:
        """Returns delta at each epsilon, linear in e^epsilon between two points."""
        points, totals = self._totals
        places = np.floor((epsilons - points[0]) / self.interval).astype(np.int64)
        low, high = (totals[np.clip(places + more, 0, len(totals) - 1)] for more in (0, 1))
        into = np.clip((epsilons - points[0]) - places * self.interval, 0.0, self.interval)
        share = np.expm1(into) / math.expm1(self.interval) if self.interval < 30 else 0.0
        lines: Floats = np.where(places < 0, 1.0, low + share * (high - low))
        return lines

    @cached_property
    def _totals(self) -> tuple[Floats, Floats]:
        """Returns delta at every grid point, including the error bound ``lost``."""
        epsilons = self.interval * (self.first + np.arange(len(self.masses)))
        scale = np.exp(np.minimum(self.log - self.tilt * epsilons, 700))
        shrink = math.exp(-self.interval)
        # The slope of delta: higher losses, each times e^-(1 + tilt)(loss - epsilon).
        decay = shrink * math.exp(-self.tilt * self.interval)
        higher = np.append(self.masses[1:], 0.0)[::-1]
        slopes = lfilter([1.0], [1.0, -decay], higher)[::-1] * math.exp(-self.tilt * self.interval)
        keep = math.exp(-self.tilt * self.interval)
        sums = lfilter([1.0], [1.0, -keep], slopes[::-1])[::-1] * -math.expm1(-self.interval)
        proven = (1 + _SLACK) * scale * (sums + self.lost) + self.infinite
        totals: Floats = np.maximum.accumulate(np.minimum(proven, 1.0)[::-1])[::-1]
        return epsilons, totals


def _part_of(interval: float, share: float) -> float:
    """Returns how far into a cell a share of its width in e^epsilon reaches."""
    if interval > 30:
        return interval
    return math.log1p(share * math.expm1(interval))


def _exp(exponents: Floats) -> Floats:
    """Returns e^x for x <= 0, at least 1e-35: subnormal floats are slow."""
    return np.exp(np.maximum(exponents, -80.0))


@lru_cache(maxsize=64)
def _step_losses(step: Steps, interval: float, direction: Direction) -> _StepLosses:
    """Discretizes the losses of one step, keeping each cell's mass under both neighbors."""
    low, high = _ends(step, direction)
    first, last = math.floor(low / interval), math.ceil(high / interval)
    points = np.arange(first, last + 1, dtype=np.float64) * interval
    sign = 1 if direction == "removed" else -1
    places = _place(sign * points, step)
    apart, together = (_between(places, mean, step.noise) for mean in (0.0, 1.0))
    mixed = (1 - step.rate) * apart + step.rate * together
    ours, theirs = (mixed, apart) if direction == "removed" else (apart, mixed)
    with np.errstate(divide="ignore", over="ignore"):
        excess = ours - np.exp(np.log(theirs) + points[:-1])
    upper = excess / -math.expm1(-interval) + _MARGIN * ours
    upper = np.clip(upper, 0.0, ours)
    masses = np.append(ours - upper, 0.0)
    masses[1:] += upper
    outside = _tails(places, sign, step, direction)
    masses[0] += outside[0]
    return _StepLosses(interval, first, masses, outside[1])


def _ends(step: Steps, direction: Direction) -> tuple[float, float]:
    """Returns the bounds within which all but a tail of one step's losses lie."""
    far = -float(ndtri(_TAIL / step.count)) * step.noise
    # Losses below the grid are raised to its first point, which only raises delta.
    near = -float(ndtri(_RAISED / step.count)) * step.noise
    if direction == "removed":
        shift = 1.0 if step.rate == 1 else 0.0
        return _loss(shift - near, step), _loss(1 + far, step)
    return -_loss(near, step), -_loss(-far, step)


def _loss(point: float, step: Steps) -> float:
    """Returns log of (1 - rate + rate e^((2 point - 1) / (2 noise^2)))."""
    exponent = (2 * point - 1) / (2 * step.noise**2)
    if step.rate == 1:
        return exponent
    if exponent < 30:
        return math.log1p(step.rate * math.expm1(exponent))
    return exponent + math.log(step.rate) + math.log1p((1 / step.rate - 1) * math.exp(-exponent))


def _place(losses: Floats, step: Steps) -> Floats:
    """Inverts ``_loss``; -inf below the smallest loss."""
    if step.rate == 1:
        return losses * step.noise**2 + 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        near = np.log1p(np.maximum(np.expm1(np.minimum(losses, 500)) / step.rate, -1.0))
    logs = np.where(losses > 500, losses - math.log(step.rate), near)
    places: Floats = step.noise**2 * logs + 0.5
    return places


def _between(places: Floats, mean: float, noise: float) -> Floats:
    """Returns the mass of a Gaussian between neighboring points, in either order."""
    scores = (places - mean) / noise
    low, high = np.minimum(scores[:-1], scores[1:]), np.maximum(scores[:-1], scores[1:])
    masses: Floats = np.where(low > 0, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))
    return masses


def _tails(places: Floats, sign: int, step: Steps, direction: Direction) -> tuple[float, float]:
    """Returns the mass of losses below the grid and above it."""
    low, high = sign * places[0], sign * places[-1]
    rate = step.rate if direction == "removed" else 0.0

    def below(point: float) -> float:
        means = (0.0, 1.0)
        apart, together = (ndtr((point - sign * mean) / step.noise) for mean in means)
        return float((1 - rate) * apart + rate * together)

    def above(point: float) -> float:
        apart, together = (ndtr((sign * mean - point) / step.noise) for mean in (0.0, 1.0))
        return float((1 - rate) * apart + rate * together)

    return below(low), above(high)


def _interval(steps: Sequence[Steps], direction: Direction) -> float:
    """Chooses a grid whose rounding is small relative to the deviation of the losses."""
    spread: float = min(_deviation(step, direction) for step in steps)
    ends = [_ends(step, direction) for step in steps]
    width = max(high - low for low, high in ends)
    count = sum(step.count for step in steps)
    fine = _FINENESS * min(2.5, max(1.0, (count / 1e4) ** 0.25)) * spread
    usual = min(max(fine, width / _POINTS), max(fine, 4 * _FINENESS * spread))
    return float(max(usual, width / _MAX_POINTS, _MIN_COARSENESS / math.sqrt(count)))


def _deviation(step: Steps, direction: Direction) -> float:
    """Returns the standard deviation of one step's loss, by quadrature."""
    scores = np.linspace(-9, 9, 2001)
    weights = np.exp(-(scores**2) / 2)
    sets = []
    if direction == "removed":
        sets.append((step.rate * weights, 1 + step.noise * scores, 1.0))
        sets.append(((1 - step.rate) * weights, step.noise * scores, 1.0))
    else:
        sets.append((weights, step.noise * scores, -1.0))
    masses = np.concatenate([mass for mass, _, _ in sets])
    exponents = np.concatenate([(2 * point - 1) / (2 * step.noise**2) for _, point, _ in sets])
    with np.errstate(divide="ignore"):
        floor = math.log1p(-step.rate) if step.rate < 1 else -math.inf
        losses = np.logaddexp(floor, exponents + math.log(step.rate))
    mean = float(masses @ losses) / float(masses.sum())
    return math.sqrt(float(masses @ (losses - mean) ** 2) / float(masses.sum()))
