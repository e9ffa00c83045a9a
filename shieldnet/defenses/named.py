"""Rows that name k of K classes and share the rest evenly, which is less work than rows of K.

On a CPU the work is done on numpy's view of the same memory, whose argmax, sort and small
operations take a fraction of torch's time. When torch traces a graph, or on another device, the
same code runs on tensors. It uses operators that both have, and integers wherever the order of
additions could change a result, so that both give the same bits.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from shieldnet.core.opaque_ops import is_captured, lowered_checks
from shieldnet.outputs.layout import ZERO_LOGIT

Array: TypeAlias = Any
"""A tensor, or numpy's array of the same numbers."""

UNIT = 2**30
"""The integer weight of probability 1."""

_BELOW = 1 - 2.0**-20
_VIEWED = (torch.float32, torch.float64)


def at_hand(rows: Tensor) -> Array:
    """Returns numpy's view of rows if that is faster for the same bits."""
    is_plain = type(rows) is Tensor and rows.is_cpu and rows.dtype in _VIEWED
    if not is_plain or is_captured() or lowered_checks() is not None:
        return rows
    return (rows.detach() if rows.requires_grad else rows).numpy()


def as_tensor(array: Array) -> Tensor:
    """Returns the tensor of the same memory."""
    return array if isinstance(array, Tensor) else torch.from_numpy(np.asarray(array))


def like(tensor: Tensor, array: Array) -> Array:
    """Returns a tensor as the kind of array that another is."""
    return tensor if isinstance(array, Tensor) else tensor.numpy()


def joined(parts: list[Array]) -> Array:
    """Joins arrays along the last axis."""
    return torch.cat(parts, -1) if isinstance(parts[0], Tensor) else np.concatenate(parts, -1)


def least(first: Array, second: Array) -> Array:
    """Returns the smaller of two numbers, entry by entry; the second may be a scalar."""
    if not isinstance(first, Tensor):
        return np.minimum(first, second)
    return first.clamp_max(second) if isinstance(second, int) else torch.minimum(first, second)


def where(condition: Array, first: Array, second: Array) -> Array:
    """Returns the first or the second number by a condition, entry by entry."""
    if isinstance(condition, Tensor):
        return torch.where(condition, first, second)
    return np.where(condition, first, second)


def whole_part(numbers: Array) -> Array:
    """Truncates numbers toward zero to int64."""
    return numbers.to(torch.int64) if isinstance(numbers, Tensor) else numbers.astype(np.int64)


Arrays: TypeAlias = tuple[NDArray[Any], ...]
Tables: TypeAlias = Callable[..., Arrays]

TABLES: dict[str, Tables] = {}
"""Functions that make short tables from settings, by name: names are constants to a compiler."""


def tables(make: Tables) -> Tables:
    """Registers a function that makes short tables; each is made once."""
    TABLES[make.__name__] = kept = lru_cache(maxsize=128)(make)
    return kept


def weights_of(probabilities: Array) -> Array:
    """Truncates probabilities to integer multiples of 2^-30. Shapes: (...) -> (...) int64."""
    return whole_part(probabilities * UNIT)


def left_of(weights: Array) -> Array:
    """Returns the weight that named classes leave. Shapes: (..., k) -> (..., 1) int64."""
    left = UNIT - weights.sum(-1, keepdims=True)
    return left.clamp_min(0) if isinstance(left, Tensor) else np.maximum(left, 0)


def whole_quotient(counts: Array, divisor: Array | int) -> Array:
    """Divides integers >= 0 and drops the remainder. Shapes: kept."""
    if isinstance(counts, Tensor):
        return torch.div(counts, divisor, rounding_mode="trunc")
    return counts // divisor


def quotient(counts: Array, whole: int, dtype: torch.dtype) -> Array:
    """Divides integers in float64, then rounds to ``dtype``. Shapes: kept."""
    if isinstance(counts, Tensor):
        return (counts.to(torch.float64) / float(whole)).to(dtype)
    return (counts / float(whole)).astype(numpy_type(dtype))


class Lookup(NamedTuple):
    """Represents numbers by their places in a short table.

    Shapes: places (..., n) int64. tables: name of the function that makes the tables from settings:
    the values, then their logarithms. which: index of the table.
    """

    places: Array
    tables: str
    settings: tuple[Any, ...]
    which: int = 0

    def column(self) -> Array:
        """Returns the numbers. Shapes: -> (..., n)."""
        if isinstance(self.places, Tensor):
            device = self.places.device
            return constant(self.tables, self.settings, self.which, device).take(self.places)
        return TABLES[self.tables](*self.settings)[self.which].take(self.places)


def constant(tables: str, settings: tuple[Any, ...], which: int, device: torch.device) -> Tensor:
    """Returns a table as a tensor, which is a constant of a traced graph.

    settings: the last one is the dtype of the numbers.
    """
    if torch.compiler.is_dynamo_compiling():  # what it traced must not outlive its graph
        return torch.tensor(_numbers(tables, settings, which), dtype=settings[-1], device=device)
    return _kept(tables, settings, which, device)


def _numbers(tables: str, settings: tuple[Any, ...], which: int) -> tuple[float, ...]:
    return tuple(TABLES[tables](*settings)[which].tolist())


# As torch.compiler.assume_constant_result marks it, whose call loads the compiler: a second.
_numbers._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=256)
def _kept(tables: str, settings: tuple[Any, ...], which: int, device: torch.device) -> Tensor:
    with _disable_current_modes():  # a real tensor, also while a graph is drawn
        return torch.from_numpy(TABLES[tables](*settings)[which]).to(device)


@tables
def places_of(count: int, dtype: torch.dtype) -> Arrays:
    """Returns the places of a row, the distance of each from the last, and 1 at the first."""
    places = np.arange(count)
    return places, count - 1 - places, (places == 0) * 1


def row_of(which: int, count: int, like: Array) -> Array:
    """Returns one of ``places_of`` for a row of ``count``."""
    settings = count, torch.int64
    if isinstance(like, Tensor):
        return constant("places_of", settings, which, like.device)
    return places_of(*settings)[which]


class Named(NamedTuple):
    """Represents rows that name a few classes and share the rest evenly.

    Shapes: scores (..., k), places (..., k) int64 the classes that have them, rest (..., 1) the
    score of every other class; scores and rest may be a scalar for all rows, or a ``Lookup``. The
    first named class is the winner. rest may be None: an even share of what descending
    probabilities leave, limited to less than the least of them, so that no earlier class wins.
    classes: K. dtype: of the scores.
    """

    scores: Array | Lookup | float
    places: Array
    rest: Array | Lookup | float | None
    classes: int
    dtype: torch.dtype

    def dense(self) -> Tensor:
        """Returns the rows with all classes. Shapes: -> (..., classes)."""
        shape = (*self.places.shape[:-1], self.classes)
        scores, rest = _looked_up(self.scores), _looked_up(self.shared().rest)
        if not isinstance(self.places, Tensor):
            return torch.from_numpy(_written(self.places, scores, rest, shape, self.dtype))
        if isinstance(rest, Tensor):
            return rest.expand(shape).scatter(-1, self.places, scores)
        row = self.places.new_full(shape, rest, dtype=self.dtype)
        return row.scatter_(-1, self.places, scores)

    def shared(self) -> "Named":
        """Returns the rows with the score of every other class, computed if it was None."""
        if self.rest is not None:
            return self
        scores = self.columns()
        others = self.classes - scores.shape[-1]
        even = quotient(left_of(weights_of(scores)), UNIT * others, self.dtype)
        return self._replace(rest=least(even, scores[..., -1:] * _BELOW))

    def columns(self) -> Array:
        """Returns the scores of the named classes. Shapes: -> (..., k)."""
        scores = _looked_up(self.scores)
        if not isinstance(scores, float):
            return scores
        if isinstance(self.places, Tensor):
            return self.places.new_full(self.places.shape, scores, dtype=self.dtype)
        return np.full(self.places.shape, scores, dtype=numpy_type(self.dtype))


def _looked_up(column: Array | Lookup | float) -> Array | float:
    return column.column() if isinstance(column, Lookup) else column


def _written(
    places: NDArray[Any], scores: Any, rest: Any, shape: tuple[int, ...], dtype: torch.dtype
) -> NDArray[Any]:
    rows: NDArray[Any] = np.empty(shape, dtype=numpy_type(dtype))
    rows[...] = rest
    count = rows.size // shape[-1]
    if count > 1:
        starts = np.arange(0, rows.size, shape[-1])
        places = places + starts.reshape(*shape[:-1], 1)
    rows.put(places, scores)
    return rows


def numpy_type(dtype: torch.dtype) -> type:
    """Returns numpy's type for the numbers of a defense: float32 or float64."""
    return np.float64 if dtype == torch.float64 else np.float32


def logs_of(probabilities: Tensor) -> Tensor:
    """Returns finite logarithms: a zero becomes ``ZERO_LOGIT``."""
    return probabilities.log().clamp_min_(ZERO_LOGIT)


def with_logs(table: NDArray[Any], dtype: torch.dtype) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns probabilities and their logarithms in ``dtype``. Shapes: (m,) float64 -> (m,)."""
    is_none = table == 0
    logs = np.where(is_none, ZERO_LOGIT, np.log(np.where(is_none, 1.0, table)))
    return table.astype(numpy_type(dtype)), logs.astype(numpy_type(dtype))


def dense(answers: Tensor | Named) -> Tensor:
    """Returns rows with all classes."""
    return answers.dense() if isinstance(answers, Named) else answers


def all_on(places: Array, classes: int, dtype: torch.dtype) -> Named:
    """Returns rows with all probability on one class. Shapes: places (..., 1)."""
    return Named(1.0, places, 0.0, classes, dtype)


def taken(rows: NDArray[Any], places: NDArray[np.int64]) -> NDArray[Any]:
    """Returns the entries of each row at its places. Shapes: (n, K), (n, k) -> (n, k)."""
    if len(rows) == 1:
        return np.take(rows[0], places)
    starts = np.arange(0, rows.size, rows.shape[-1])
    found: NDArray[Any] = rows.reshape(-1).take(places + starts[:, None])
    return found


def winner_place(scores: Tensor) -> Array:
    """Returns the class of the first largest score of each row. Shapes: -> (..., 1) int64."""
    rows = at_hand(scores)
    return rows.argmax(-1)[..., None]


def winner(scores: Tensor) -> tuple[Array, Array]:
    """Returns the first largest score of each row and its class. Shapes: -> (..., 1) twice."""
    rows = at_hand(scores)
    if isinstance(rows, Tensor):
        highest = rows.max(-1, keepdim=True)
        return highest.values, highest.indices
    return rows.max(-1, keepdims=True), rows.argmax(-1)[..., None]
