"""The base of all defenses: a frozen value that changes answers and states what it does."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from shieldnet.core.errors import ConfigError
from shieldnet.defenses.named import Named, dense
from shieldnet.outputs.layout import Kind
from shieldnet.privacy.cost import PrivacyCost, Reach
from shieldnet.privacy.events import Event, event_of

UNBOUNDED = Reach()


@dataclass(frozen=True)
class Defense(ABC):
    """Changes answers before they are released, row by row on the last axis.

    The class attributes are claims; ``tests/defenses/test_every_defense.py`` tests those of every
    defense.

    accepts: the kinds it reads. gives: the kind it returns, or None for the kind that it read.
    keeps_argmax: the first largest score of each row stays the first largest.
    deterministic: the same row gets the same answer.
    may_overflow: finite scores may leave the float range; the Shield checks its answers.
    keeps_nan: a row with NaN or Inf still has one afterwards; the Shield then checks only once.
    centered: the Shield inserts a step before it that centers logits.
    not_after: names of defenses that it must not follow, each with the fix.
    conversion: the Shield inserts it where it is needed; users do not name it.
    reads_inputs: it needs the model's inputs, which ``with_inputs`` passes on.
    secret: names of fields that are never printed or written to a file.
    """

    accepts: ClassVar[tuple[Kind, ...]]
    gives: ClassVar[Kind | None] = None
    keeps_argmax: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    may_overflow: ClassVar[bool] = False
    keeps_nan: ClassVar[bool] = False
    centered: ClassVar[bool] = False
    not_after: ClassVar[Mapping[str, str]] = MappingProxyType({})
    conversion: ClassVar[bool] = False
    reads_inputs: ClassVar[bool] = False
    secret: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def examples(cls) -> tuple["Defense", ...]:
        """Returns a few instances, for tests and documentation."""
        return (cls(),)

    @property
    def gives_integers(self) -> bool:
        """Returns whether it releases integer numbers of steps."""
        return False

    @property
    def grid(self) -> float:
        """Returns the size of the step that a released integer counts."""
        return 1.0

    @property
    def noise_deviation(self) -> float | None:
        """Returns the standard deviation of the noise that it adds to every score, or None."""
        return None

    @abstractmethod
    def __call__(self, answers: Tensor) -> Tensor:
        """Returns defended answers. Shapes: (..., classes) -> (..., classes)."""

    def draw(self, shape: torch.Size) -> Tensor | None:
        """Draws the noise for answers of this shape, on the CPU; returns None if it needs none.

        The noise depends on no answer, so that ``with_noise`` can run elsewhere.
        """
        return None

    def with_noise(self, answers: Tensor, noise: Tensor) -> Tensor:
        """Returns defended answers as a function of answers and noise alone.

        noise: the result of ``draw`` for answers of this shape, on their device.
        Errors: ConfigError for a defense without noise.
        """
        raise ConfigError(f"{self} takes no noise: call it.")

    def compact_with(self, answers: Tensor | Named, noise: Tensor) -> Tensor | Named:
        """Does the same as ``with_noise``, and may read and return ``Named`` rows."""
        return self.with_noise(dense(answers), noise)

    def compact(self, answers: Tensor | Named) -> Tensor | Named:
        """Does the same as a call, and may read and return ``Named`` rows."""
        return self(dense(answers))

    def with_inputs(self, answers: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        """Does the same as a call, given the model's inputs, if it ``reads_inputs``."""
        return self(answers)

    def given(self, kind: Kind) -> Kind:
        """Returns the kind of its answers to answers of ``kind``."""
        return self.gives or kind

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        """Returns the privacy cost of one row, of this stage alone.

        upstream: the bounds of the stage before.
        """
        return PrivacyCost()

    def event(self, classes: int, upstream: Reach = UNBOUNDED) -> Event | None:
        """Returns what this stage alone did to one row, for composition; None if unknown.

        The default is what the privacy cost proves; a mechanism may return more.
        """
        return event_of(self.cost(classes, upstream))

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        """Returns bounds on the answers of this stage, given those of the stage before."""
        return UNBOUNDED

    def distinct(self, positions: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the grid of positions of an answer that can still differ."""
        return positions

    def adversary_view(self, answers: Tensor) -> dict[str, Tensor]:
        """Lists the ways in which the best known attacker reads the released distribution.

        Shapes: answers (rows, classes) probabilities -> each map (rows, features).
        """
        return {}


@dataclass(frozen=True)
class Naming(Defense):
    """Chooses a few classes with ``named``, and gives rows that share the rest evenly."""

    accepts: ClassVar[tuple[Kind, ...]] = ("probabilities",)
    gives = "probabilities"

    @abstractmethod
    def named(self, answers: Tensor) -> Named:
        """Returns the named classes. Shapes: (..., classes) -> rows of ``Named``."""

    def __call__(self, answers: Tensor) -> Tensor:
        return self.named(answers).dense()

    def compact(self, answers: Tensor | Named) -> Tensor | Named:
        return self.named(dense(answers))


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
