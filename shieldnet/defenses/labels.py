"""Only the winner: its name, or its name and how sure the model is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet._validate import whole
from shieldnet.defenses.base import UNBOUNDED, Defense, Named, Naming, all_on, dense, winner
from shieldnet.price import Price, Reach, label_bits


@dataclass(frozen=True)
class Label(Naming):
    """Releases the winning class alone, as a row with all mass on it."""

    accepts = ("logits", "probabilities")

    def named(self, answers: Tensor) -> Named:
        return all_on(winner(answers)[1], answers)

    def price(self, classes: int, upstream: Reach = UNBOUNDED) -> Price:
        return Price(bits=label_bits(classes))

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
        classes = answers.shape[-1]
        top, place = winner(answers)
        return middles(bin_of(top, self.bins, classes), place, self.bins, classes)

    def price(self, classes: int, upstream: Reach = UNBOUNDED) -> Price:
        return Price(bits=label_bits(classes, self.bins))

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

    def price(self, classes: int, upstream: Reach = UNBOUNDED) -> Price:
        return Price(bits=label_bits(classes))


def bin_of(top: Tensor, bins: int, classes: int) -> Tensor:
    """Finds the bin of a winner's probability. Shapes: (..., 1) -> whole numbers as floats."""
    per_unit = bins / (1 - 1 / classes)
    return top.sub(1 / classes).mul_(per_unit).floor_().clamp_(0, bins - 1)


def middles(index: Tensor, place: Tensor, bins: int, classes: int) -> Named:
    """Gives each winner the middle of its bin and the others an even share of the rest.

    Shapes: index (..., 1) whole numbers as floats, place (..., 1).
    """
    width = (1 - 1 / classes) / bins
    middle = index.mul(width).add_(1 / classes + width / 2)
    rest = torch.rsub(middle, 1.0).div_(classes - 1)
    return Named(middle, place, rest, classes)
