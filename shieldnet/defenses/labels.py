"""Only the winner: its name, or its name and how sure the model is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.core.checks import whole
from shieldnet.core.opaque_ops import is_captured
from shieldnet.defenses.base import (
    UNBOUNDED,
    Defense,
    Lookup,
    Named,
    Naming,
    all_on,
    dense,
    logs_of,
    winner,
)
from shieldnet.privacy.cost import PrivacyCost, Reach, label_bits


@dataclass(frozen=True)
class Label(Naming):
    """Releases the winning class alone, as a row with all mass on it."""

    accepts = ("logits", "probabilities")

    def named(self, answers: Tensor) -> Named:
        return all_on(winner(answers)[1], answers)

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        return PrivacyCost(bits=label_bits(classes))

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=1.0, named=1)


@dataclass(frozen=True)
class Confidence(Naming):
    """Releases the winning class and which of ``bins`` equal bins its probability lies in.

    The winner gets the middle of its bin, the other classes share the rest evenly. The bins
    divide [1/K, 1], the range of a winner among K classes, so the winner stays the winner.
    """

    bins: int = 4

    def __post_init__(self) -> None:
        whole("bins", self.bins, low=1, high=2**20)

    def named(self, answers: Tensor) -> Named:
        top, index = winner(answers)
        bins = bins_of(self.bins, answers)
        return bins.named(bins.index(top), index, answers.shape[-1])

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        return PrivacyCost(bits=label_bits(classes, self.bins))

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=1.0, named=1)


@dataclass(frozen=True)
class Argmax(Defense):
    """Turns a row into the index of its first largest score; a conversion for ``labels``."""

    accepts = ("logits", "probabilities")
    gives = "labels"
    conversion = True

    def __call__(self, answers: Tensor) -> Tensor:
        return answers.argmax(-1)

    def compact(self, answers: Tensor | Named) -> Tensor | Named:
        if isinstance(answers, Named) and answers.places.shape[-1] == 1:
            return answers.places.squeeze(-1)
        return self(dense(answers))

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        return PrivacyCost(bits=label_bits(classes))


@dataclass(frozen=True)
class Bins:
    """Equal bins of a winner's probability, between 1/K and 1, and what each of them releases.

    edges: between bins. winner: the middle of each bin. others: an even share of the rest.
    """

    edges: Tensor
    winner: Lookup
    others: Lookup

    def index(self, top: Tensor) -> Tensor:
        """Finds the bins of probabilities. Shapes: (..., 1) -> (..., 1) int64."""
        return torch.bucketize(top.contiguous(), self.edges, right=True)

    def named(self, index: Tensor, label: Tensor, classes: int) -> Named:
        """Gives each winner the middle of its bin. Shapes: (..., 1), (..., 1)."""
        winner = Lookup(index, self.winner.table, self.winner.logs)
        others = Lookup(index, self.others.table, self.others.logs)
        return Named(winner, label, others, classes, self.edges.dtype)


_made: dict[tuple[int, int, torch.dtype, torch.device], Bins] = {}


def bins_of(bins: int, like: Tensor) -> Bins:
    """Returns the bins for rows like ``like``; they are made once."""
    key = bins, like.shape[-1], like.dtype, like.device
    if is_captured():  # a traced tensor must not outlive its graph
        return _bins(*key)
    if key not in _made:
        _made[key] = _bins(*key)
    return _made[key]


def _bins(bins: int, classes: int, dtype: torch.dtype, device: torch.device) -> Bins:
    width = (1 - 1 / classes) / bins
    steps = torch.arange(bins, dtype=torch.float64, device=device)
    edges = (1 / classes + steps[1:] * width).to(dtype)
    middle = 1 / classes + (steps + 0.5) * width
    rest = (1 - middle) / (classes - 1)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    winner, others = (
        Lookup(none, table.to(dtype), logs_of(table).to(dtype)) for table in (middle, rest)
    )
    return Bins(edges, winner, others)
