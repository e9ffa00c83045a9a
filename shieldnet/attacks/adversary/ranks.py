"""The values of a heavy-tailed column by their ranks."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Maps the values of a column to normal scores: what a normal value of the same rank would be.

    In a column of debts or incomes the squared error lies in few rows, and knowing the order of all
    the others counts for nothing. Normal scores weigh every part of the order; equal values share
    one score, and values between two known ones lie between their scores.
    Shapes: values (distinct,) in ascending order, scores (distinct,); float64.
    Source: van der Waerden 1952.
    """

    values: Tensor
    scores: Tensor

    @classmethod
    def of(cls, column: Tensor) -> "Ranks":
        """Ranks a column. Shapes: (rows,), two distinct values or more."""
        values, counts = column.double().unique(return_counts=True)
        middle = counts.cumsum(0).double() - counts.double() / 2
        return cls(values, torch.special.ndtri(middle / len(column)))

    def apply(self, column: Tensor) -> Tensor:
        """Returns scores. Values out of range count as the nearest. Shapes: (rows,) -> (rows,)."""
        return _between(self.values, self.scores, column.double())

    def undo(self, scores: Tensor) -> Tensor:
        """Returns values, with a gradient. Shapes: (rows,) -> (rows,)."""
        return _between(self.scores, self.values, scores.double())


def _between(known: Tensor, images: Tensor, sought: Tensor) -> Tensor:
    """Interpolates linearly between neighbors. Shapes: (distinct,), (distinct,), (rows,)."""
    upper = torch.searchsorted(known, sought.detach().contiguous()).clamp(1, len(known) - 1)
    lower = upper - 1
    share = ((sought - known[lower]) / (known[upper] - known[lower])).clamp(0, 1)
    return images[lower].lerp(images[upper], share)
