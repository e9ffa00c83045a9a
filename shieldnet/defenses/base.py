"""What every defense is: a frozen value that shapes answers and says what it does to them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from shieldnet.core.errors import ConfigError
from shieldnet.core.opaque_ops import opaque
from shieldnet.outputs.layout import ZERO_LOGIT, Kind
from shieldnet.privacy.cost import PrivacyCost, Reach
from shieldnet.privacy.events import Event, event_of

UNBOUNDED = Reach()

# Up to which one sort beats topk and a look at ties.
_MAX_SORTED_CLASSES, _MAX_SORTED_NUMBERS = 64, 4096


class Lookup(NamedTuple):
    """One number a row, by its place in a short table; with the table's logarithms at hand.

    Shapes: places (..., 1) int64, table (n,), logs (n,).
    """

    places: Tensor
    table: Tensor
    logs: Tensor

    def tensor(self) -> Tensor:
        """Looks the numbers up. Shapes: -> (..., 1)."""
        return self.table.take(self.places)


class Named(NamedTuple):
    """Rows that name a few classes and share the rest evenly: what is left to do is on k, not K.

    Shapes: scores (..., k), places (..., k) int64 the classes that have them, rest (..., 1) the
    score of every other class; scores and rest may be one number for all rows, or looked up. The
    first named class is the winner. classes: K. dtype: of the scores.
    """

    scores: Tensor | Lookup | float
    places: Tensor
    rest: Tensor | Lookup | float
    classes: int
    dtype: torch.dtype

    def dense(self) -> Tensor:
        """Writes the rows out. Shapes: -> (..., classes)."""
        shape = (*self.places.shape[:-1], self.classes)
        scores, rest = _looked_up(self.scores), _looked_up(self.rest)
        if isinstance(rest, Tensor):
            return rest.expand(shape).scatter(-1, self.places, scores)
        row = self.places.new_full(shape, rest, dtype=self.dtype)
        return row.scatter_(-1, self.places, scores)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Returns scores and rest as tensors. Shapes: -> (..., k), (..., 1)."""
        scores, rest = _looked_up(self.scores), _looked_up(self.rest)
        if not isinstance(scores, Tensor):
            scores = self.places.new_full(self.places.shape, scores, dtype=self.dtype)
        if not isinstance(rest, Tensor):
            rest = scores.new_full((*scores.shape[:-1], 1), rest)
        return scores, rest


def _looked_up(column: Tensor | Lookup | float) -> Tensor | float:
    return column.tensor() if isinstance(column, Lookup) else column


def logs_of(probabilities: Tensor) -> Tensor:
    """Takes finite logarithms: a zero becomes ``ZERO_LOGIT``."""
    return probabilities.log().clamp_min_(ZERO_LOGIT)


def dense(answers: Tensor | Named) -> Tensor:
    """Writes rows out, if they are not yet."""
    return answers.dense() if isinstance(answers, Named) else answers


@dataclass(frozen=True)
class Defense(ABC):
    """Changes answers before they are released, row by row on the last axis.

    The class attributes are claims, to which ``tests/defenses/test_every_defense.py`` holds every
    defense.

    accepts: the kinds it reads; gives: the kind it returns, or None for the kind that it read.
    keeps_argmax: the first largest score of each row stays the first largest.
    deterministic: the same row gets the same answer.
    may_overflow: finite scores may leave the float range; the Shield looks.
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


def keep_top(probabilities: Tensor, k: int) -> Tensor:
    """Marks the ``k`` largest entries of each row; among equals the first classes win.

    Shapes: (..., classes) -> (..., classes) bool with exactly k true in every row.
    """
    least = probabilities.topk(k, dim=-1).values[..., -1:]
    above = probabilities > least
    level = probabilities == least
    room = k - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= room))


def _shapes_of_top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*scores.shape[:-1], k)
    return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)


@opaque(_shapes_of_top)
def top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the ``k`` largest scores of each row and their classes, the first classes of equals.

    torch's topk leaves the order of equals open, and backends differ in it; it is used where no
    equals are among the first k + 1, and only the other rows are looked at again.

    Shapes: (..., classes) -> (..., k) descending and (..., k) int64.
    """
    classes = scores.shape[-1]
    if k >= classes or (classes <= _MAX_SORTED_CLASSES and scores.numel() < _MAX_SORTED_NUMBERS):
        ranked = scores.sort(dim=-1, descending=True, stable=True)
        return ranked.values[..., :k].clone(), ranked.indices[..., :k].clone()
    values, places = scores.topk(k + 1, dim=-1)
    tied = (values[..., 1:] == values[..., :-1]).any(-1)
    # Copies, not views: a view would carry the runner-up along in its storage.
    values, places = values[..., :k].clone(), places[..., :k].clone()
    if tied.any():
        rows = scores[tied]
        first = keep_top(rows, k).nonzero()[:, 1].reshape(-1, k)
        ordered = rows.gather(-1, first).sort(dim=-1, descending=True, stable=True)
        values[tied], places[tied] = ordered.values, first.gather(-1, ordered.indices)
    return values, places


def winner(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the first largest score of each row and its class. Shapes: -> (..., 1) twice."""
    highest = scores.max(-1, keepdim=True)
    return highest.values, highest.indices


def all_on(places: Tensor, like: Tensor) -> Named:
    """Puts all mass on one class. Shapes: places (..., 1), like (..., classes)."""
    return Named(1.0, places, 0.0, like.shape[-1], like.dtype)
