"""Only the winner: its name, or its name and how sure the model is."""

from dataclasses import dataclass

from torch import Tensor

from shieldnet._validate import whole
from shieldnet.defenses.base import UNBOUNDED, Defense, one_hot
from shieldnet.price import Price, Reach, label_bits


@dataclass(frozen=True)
class Label(Defense):
    """Releases the winning class alone, as a row with all mass on it."""

    accepts = ("logits", "probabilities")
    gives = "probabilities"

    def __call__(self, answers: Tensor) -> Tensor:
        return one_hot(answers.argmax(-1, keepdim=True), answers)

    def price(self, classes: int, upstream: Reach = UNBOUNDED) -> Price:
        return Price(bits=label_bits(classes))

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=1.0, named=1)


@dataclass(frozen=True)
class Confidence(Defense):
    """Releases the winning class and which of ``bins`` equal bins its probability lies in.

    The winner gets the middle of its bin, the other classes share the rest evenly. The bins
    divide [1/K, 1], the range of a winner among K classes, so the winner stays the winner.
    """

    bins: int = 4
    accepts = ("probabilities",)
    gives = "probabilities"

    def __post_init__(self) -> None:
        whole("bins", self.bins, low=1, high=2**20)

    def __call__(self, answers: Tensor) -> Tensor:
        classes = answers.shape[-1]
        winner = answers.argmax(-1, keepdim=True)
        top = answers.gather(-1, winner)
        width = (1 - 1 / classes) / self.bins
        index = ((top - 1 / classes) / width).floor().clamp(0, self.bins - 1)
        middle = 1 / classes + (index + 0.5) * width
        return ((1 - middle) / (classes - 1)).expand_as(answers).scatter(-1, winner, middle)

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

    def price(self, classes: int, upstream: Reach = UNBOUNDED) -> Price:
        return Price(bits=label_bits(classes))
