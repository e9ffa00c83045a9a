"""The winning class alone, or with a coarse confidence."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shieldnet.core.checks import whole
from shieldnet.defenses.base import UNBOUNDED, Defense, Naming
from shieldnet.defenses.named import (
    Array,
    Arrays,
    Lookup,
    Named,
    all_on,
    as_tensor,
    at_hand,
    constant,
    dense,
    numpy_type,
    tables,
    winner,
    winner_place,
    with_logs,
)
from shieldnet.privacy.cost import PrivacyCost, Reach, label_bits

_MAX_COMPARED_BINS = 32  # up to which a graph compares with every edge


@dataclass(frozen=True)
class Label(Naming):
    """Releases only the winning class, as a row with all probability on it."""

    accepts = ("logits", "probabilities")

    def named(self, answers: Tensor) -> Named:
        return all_on(winner_place(answers), answers.shape[-1], answers.dtype)

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        return PrivacyCost(bits=label_bits(classes))

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=1.0, named=1)


@dataclass(frozen=True)
class Confidence(Naming):
    """Releases the winning class, and the bin that contains its probability.

    bins: number of equal bins, 1 to 2^20, default 4. They divide the range from 1/K to 1, in which
        the winner's probability lies for K classes.
    The winner gets the middle of its bin and stays the winner; the other classes share the rest
    evenly.
    """

    bins: int = 4

    def __post_init__(self) -> None:
        whole("bins", self.bins, low=1, high=2**20)

    def named(self, answers: Tensor) -> Named:
        top, index = winner(answers)
        bins = Bins.of(self.bins, answers)
        return bins.named(bins.index(top), index)

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        return PrivacyCost(bits=label_bits(classes, self.bins))

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=1.0, named=1)


@dataclass(frozen=True)
class Argmax(Defense):
    """Converts a row to the index of its first largest score; a conversion to ``labels``."""

    accepts = ("logits", "probabilities")
    gives = "labels"
    conversion = True

    def __call__(self, answers: Tensor) -> Tensor:
        return as_tensor(at_hand(answers).argmax(-1))

    def compact(self, answers: Tensor | Named) -> Tensor | Named:
        if isinstance(answers, Named) and answers.places.shape[-1] == 1:
            return as_tensor(answers.places[..., 0])
        return self(dense(answers))

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        return PrivacyCost(bits=label_bits(classes))


@dataclass(frozen=True)
class Bins:
    """Represents equal bins of the winner's probability, from 1/K to 1, for K classes."""

    bins: int
    classes: int
    dtype: torch.dtype

    @classmethod
    def of(cls, bins: int, rows: Tensor) -> "Bins":
        """Returns the bins for rows like these. Shapes: rows (..., K)."""
        return cls(bins, rows.shape[-1], rows.dtype)

    def index(self, top: Array) -> Array:
        """Finds the bins of probabilities. Shapes: (..., 1) -> (..., 1) int64."""
        settings = self.bins, self.classes, self.dtype
        if isinstance(top, Tensor):
            edges = constant("edges_of_bins", settings, 0, top.device)
            if self.bins <= _MAX_COMPARED_BINS:
                return (top >= edges).sum(-1, keepdim=True)
            return torch.bucketize(top.contiguous(), edges, right=True)
        return edges_of_bins(*settings)[0].searchsorted(top, "right")

    def named(self, index: Array, label: Array) -> Named:
        """Gives each winner the middle of its bin. Shapes: (..., 1), (..., 1).

        The other classes share the rest evenly.
        """
        settings = self.bins, self.classes, self.dtype
        winner, others = (
            Lookup(index, "winners_of_bins", settings),
            Lookup(index, "others_of_bins", settings),
        )
        return Named(winner, label, others, self.classes, self.dtype)


@tables
def edges_of_bins(bins: int, classes: int, dtype: torch.dtype) -> Arrays:
    """Returns the probabilities between bins."""
    width = (1 - 1 / classes) / bins
    edges: NDArray[Any] = 1 / classes + np.arange(1, bins) * width
    return (edges.astype(numpy_type(dtype)),)


def _middle(bins: int, classes: int) -> NDArray[Any]:
    width = (1 - 1 / classes) / bins
    middle: NDArray[Any] = 1 / classes + (np.arange(bins) + 0.5) * width
    return middle


@tables
def winners_of_bins(bins: int, classes: int, dtype: torch.dtype) -> Arrays:
    """Returns the middle of each bin, and its logarithm."""
    return with_logs(_middle(bins, classes), dtype)


@tables
def others_of_bins(bins: int, classes: int, dtype: torch.dtype) -> Arrays:
    """Returns the share of each other class for the middle of each bin, and its logarithm."""
    return with_logs((1 - _middle(bins, classes)) / (classes - 1), dtype)
