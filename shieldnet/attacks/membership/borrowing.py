"""Was this record in the training data? What few shadows leave open is borrowed from like records.

Shapes: as in ``likelihood``. Nothing is learned from what the target says, and a higher score says
member.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.attacks.membership.likelihood import SHRINK, log_normal

NEIGHBORS = 100
"""Records that one borrows from: those that shadows answer most alike."""
_LEAST_SHARE = 0.05  # of how neighbors differ, never taken for noise of their means
_LEAST_COUNT = 0.5  # shadows' worth of a mean that no shadow tells


def lira_borrowing(
    target: Tensor,
    shadows: Tensor,
    trained_on: Tensor,
    *,
    online: bool = True,
    shrink: float = SHRINK,
) -> Tensor:
    """Scores by the log ratio of two Gaussians whose means and variances are borrowed in part.

    What training does to the answer about a record is expected to be what it did for the records
    that shadows without them answer alike, and is as uncertain as these differ. The record's own
    shadows weigh in by how many they are; what stays unknown of a mean widens its Gaussian.
    Variances shrink to the neighbors', as by ``lira`` to those of all.

    online: whether shadows that were trained on a record tell of it. Without them all that
    training does is borrowed: the adversary cannot train on the record, but on records like it.
    (What is left of a record that trained every shadow is their mean, moved back.)

    Source: empirical Bayes for Carlini et al. 2022 (arXiv:2112.03570); offline, in the place of
    the proxies of arXiv:2511.04716.
    """
    inside, outside = _Side.of(shadows, trained_on), _Side.of(shadows, ~trained_on)
    both = (inside.count > 0) & (outside.count > 0)
    gaps = torch.where(both, inside.mean - outside.mean, 0.0)
    overall = gaps.sum() / both.sum().clamp_min(1)
    inside, outside = inside.filled(outside.mean + overall), outside.filled(inside.mean - overall)
    near_outside, near_inside = _Neighbors.of(outside.mean), _Neighbors.of(inside.mean)
    width_outside, _ = outside.variances(near_outside, shrink)
    width_inside, borrowed_width = inside.variances(near_inside if online else near_outside, shrink)
    noise = width_inside / inside.count.clamp_min(1) + width_outside / outside.count.clamp_min(1)
    count = outside.count if online else outside.count.clamp_min(_LEAST_COUNT)
    without = _Belief(outside.mean, count / width_outside)
    with_it = without.moved(*near_outside.moments(gaps, noise, both))
    if not online:
        likely = with_it.log_density(target, borrowed_width)
        return likely - without.log_density(target, width_outside)
    own = _Belief(inside.mean, inside.count / width_inside)
    moved, spread = near_inside.moments(gaps, noise, both)
    with_it, without = own + with_it, without + own.moved(-moved, spread)
    return with_it.log_density(target, width_inside) - without.log_density(target, width_outside)


@dataclass(frozen=True)
class _Belief:
    """What is known of the mean of answers about each record. precision: 0 where nothing is."""

    mean: Tensor
    precision: Tensor

    def __add__(self, other: "_Belief") -> "_Belief":
        precision = self.precision + other.precision
        summed = self.mean * self.precision + other.mean * other.precision
        return _Belief(summed / precision, precision)

    def moved(self, by: Tensor, spread: Tensor) -> "_Belief":
        """Returns what it says of a mean that lies apart from this one, give or take a variance."""
        return _Belief(self.mean + by, self.precision / (self.precision * spread + 1))

    def log_density(self, answer: Tensor, variance: Tensor) -> Tensor:
        """Returns how likely an answer is that varies about the mean, but for a constant."""
        return log_normal(answer, self.mean, variance + 1 / self.precision)


@dataclass(frozen=True)
class _Side:
    """Holds what the shadows with a record, or those without it, say of it.

    Shapes: each (rows,). count: of those shadows. squares: summed, of deviations from the mean.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, values: Tensor, chosen: Tensor) -> "_Side":
        values, count = values.double(), chosen.sum(0).double()
        mean = torch.where(chosen, values, 0.0).sum(0) / count.clamp_min(1)
        return cls(count, mean, torch.where(chosen, values - mean, 0.0).square().sum(0))

    def filled(self, means: Tensor) -> "_Side":
        """Takes other means where there is no shadow."""
        return _Side(self.count, torch.where(self.count > 0, self.mean, means), self.squares)

    def variances(self, neighbors: "_Neighbors", shrink: float) -> tuple[Tensor, Tensor]:
        """Returns each record's variance, shrunk to its neighbors', and that of its neighbors."""
        freedom = (self.count - 1).clamp_min(0)
        others = (self.squares.sum() - self.squares).clamp_min(0)
        pooled = others / (freedom.sum() - freedom).clamp_min(1) + 1e-12
        near = neighbors.sums(self.squares) + shrink * pooled
        near = near / (neighbors.sums(freedom) + shrink)
        return (self.squares + shrink * near) / (freedom + shrink), near


@dataclass(frozen=True)
class _Neighbors:
    """The records whose numbers lie next to each record's, without it.

    Equal numbers are neighbors together or not at all: the order of records decides nothing.
    """

    order: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, numbers: Tensor) -> "_Neighbors":
        order, rows = numbers.argsort(), len(numbers)
        ordered = numbers[order]
        middle = torch.searchsorted(ordered, numbers) + torch.searchsorted(
            ordered, numbers, right=True
        )
        low = (middle // 2 - NEIGHBORS // 2).clamp(0, max(0, rows - NEIGHBORS))
        high = (low + NEIGHBORS).clamp_max(rows)
        low = torch.searchsorted(ordered, ordered[low])
        return cls(order, low, torch.searchsorted(ordered, ordered[high - 1], right=True))

    def sums(self, values: Tensor) -> Tensor:
        """Sums over the neighbors of each record. Shapes: (rows,) -> (rows,)."""
        total = torch.cat([values.new_zeros(1), values[self.order].cumsum(0)])
        return total[self.high] - total[self.low] - values

    def moments(self, values: Tensor, noise: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean over neighbors, and the variance that noise does not explain.

        known: which records have a value; the others' is 0.
        """
        count = self.sums(known.double()).clamp_min(1)
        mean = self.sums(values) / count
        variance = (self.sums(values.square()) / count - mean.square()).clamp_min(0)
        unexplained = variance - self.sums(torch.where(known, noise, 0.0)) / count
        return mean, torch.maximum(unexplained, _LEAST_SHARE * variance)
