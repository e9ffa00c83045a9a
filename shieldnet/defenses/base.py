"""What every defense is: a frozen value that shapes answers and says what it does to them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from shieldnet.answers import Kind
from shieldnet.price import Price, Reach

UNBOUNDED = Reach()


@dataclass(frozen=True)
class Defense(ABC):
    """Changes answers before they are released, row by row on the last axis.

    The class attributes are claims; ``tests/test_every_defense.py`` holds every defense to them.

    accepts: the kinds it reads; gives: the kind it returns.
    keeps_argmax: the first largest score of each row stays the first largest.
    deterministic: the same row gets the same answer.
    not_after: names of defenses that it must not follow, each with the mend.
    conversion: the Shield inserts it where it is needed; nobody has to name it.
    """

    accepts: ClassVar[tuple[Kind, ...]]
    gives: ClassVar[Kind]
    keeps_argmax: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    not_after: ClassVar[Mapping[str, str]] = MappingProxyType({})
    conversion: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, answers: Tensor) -> Tensor:
        """Returns defended answers. Shapes: (rows, classes) -> (rows, classes)."""

    def price(self, classes: int, upstream: Reach = UNBOUNDED) -> Price:
        """Prices one answer of this stage alone, given what is known of the stage before."""
        return Price()

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        """Bounds what this stage gives, given what is known of the stage before."""
        return UNBOUNDED

    def adversary_view(self, answers: Tensor) -> dict[str, Tensor]:
        """Lists the ways in which the best known attacker reads the released distribution.

        Shapes: answers (rows, classes) probabilities -> each map (rows, features).
        """
        return {}


def readings(probabilities: Tensor) -> dict[str, Tensor]:
    """Lists the readings that serve against any answer: p, log p, ranks and the top three.

    A decoder that reads log p sees far more than one that reads p, and the floor under the log of
    a released zero matters, so several are tried.

    Shapes: (rows, classes) -> each (rows, classes).
    """
    classes = probabilities.shape[-1]
    order = probabilities.argsort(dim=-1, descending=True, stable=True)
    ranks = order.argsort(-1).to(probabilities.dtype)
    return {
        "p": probabilities,
        "log p above 1e-3": probabilities.clamp_min(1e-3).log(),
        "log p above 1e-8": probabilities.clamp_min(1e-8).log(),
        "log p above 1e-30": probabilities.clamp_min(1e-30).log(),
        "ranks": ranks / classes,
        "top 3": (ranks < min(3, classes)).to(probabilities.dtype),
    }


def keep_top(probabilities: Tensor, k: int) -> Tensor:
    """Marks the ``k`` largest entries of each row; among equals the first classes win.

    Shapes: (rows, classes) -> (rows, classes) bool with exactly k true in every row.
    """
    least = probabilities.topk(k, dim=-1).values[..., -1:]
    above = probabilities > least
    level = probabilities == least
    room = k - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= room))


def one_hot(winner: Tensor, like: Tensor) -> Tensor:
    """Puts all mass on one class. Shapes: winner (rows, 1), like (rows, classes) -> like's."""
    return torch.zeros_like(like).scatter_(-1, winner, 1.0)
