"""What every defense is: a frozen value that shapes answers and says what it does to them."""

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

    The class attributes are claims, to which ``tests/defenses/test_every_defense.py`` holds every
    defense.

    accepts: the kinds it reads; gives: the kind it returns, or None for the kind that it read.
    keeps_argmax: the first largest score of each row stays the first largest.
    deterministic: the same row gets the same answer.
    may_overflow: finite scores may leave the float range; the Shield looks.
    keeps_nan: a row with NaN or Inf is one afterwards, too; the Shield then looks only once.
    centered: logits are centered before it; the Shield inserts that.
    not_after: names of defenses that it must not follow, each with the fix.
    conversion: the Shield inserts it where it is needed; nobody has to name it.
    reads_inputs: it needs what the model was asked, and gets that by ``with_inputs``.
    secret: names of fields that are never printed nor written to a file.
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
        """Returns a few of its kind: what its claims are tried on, and shown with."""
        return (cls(),)

    @property
    def gives_integers(self) -> bool:
        """Says whether it gives whole numbers of steps."""
        return False

    @property
    def grid(self) -> float:
        """Returns what one released integer is worth."""
        return 1.0

    @property
    def noise_deviation(self) -> float | None:
        """Returns the deviation of the noise that it adds to every score; None for none."""
        return None

    @abstractmethod
    def __call__(self, answers: Tensor) -> Tensor:
        """Returns defended answers. Shapes: (..., classes) -> (..., classes)."""

    def draw(self, shape: torch.Size) -> Tensor | None:
        """Draws the noise for answers of this shape, on the CPU; None where it takes none.

        It depends on no answer: whoever runs ``with_noise`` elsewhere draws it here.
        """
        return None

    def with_noise(self, answers: Tensor, noise: Tensor) -> Tensor:
        """Does the same as a call, as a function of answers and noise alone.

        noise: what ``draw`` gave for answers of this shape, on their device.
        """
        raise ConfigError(f"{self} takes no noise: call it.")

    def compact_with(self, answers: Tensor | Named, noise: Tensor) -> Tensor | Named:
        """Does as ``with_noise``, but may take and give rows that name a few classes only."""
        return self.with_noise(dense(answers), noise)

    def compact(self, answers: Tensor | Named) -> Tensor | Named:
        """Does the same, but may take and give rows that name a few classes only."""
        return self(dense(answers))

    def with_inputs(self, answers: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        """Does the same, given what the model was asked, where it ``reads_inputs``."""
        return self(answers)

    def given(self, kind: Kind) -> Kind:
        """Names the kind that it returns for answers of ``kind``."""
        return self.gives or kind

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        """Returns the privacy cost of one row of this stage alone.

        upstream: what is known of the stage before.
        """
        return PrivacyCost()

    def event(self, classes: int, upstream: Reach = UNBOUNDED) -> Event | None:
        """Says what this stage alone did to one row, for whoever composes many; None: unknown.

        By default it is what the privacy cost proves. A mechanism of which more is known says so.
        """
        return event_of(self.cost(classes, upstream))

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        """Bounds what this stage gives, given what is known of the stage before."""
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
    """A defense whose answers name a few classes: it says which, and the base writes them out."""

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
