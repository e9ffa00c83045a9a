"""The largest scores of each row, in order, the first of equals first.

Every way that is chosen by the sizes finds the same ones.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shieldnet.defenses.named import Array, as_tensor, at_hand, joined, row_of, taken

_MAX_SORTED_CLASSES = 64  # up to which one stable sort beats looking for the largest k times
_MAX_TURNS = 12  # up to which looking for the largest k times beats a selection
_MAX_DRAWN_TURNS = 4  # the same in a graph, which is as long as there are turns
_MAX_EXACT = 2**24  # integers that float32 holds
_MIN_KEYED_ROWS = 16  # from which a sort of keys is the quicker one
_MIN_BLOCKED_CLASSES = 4096  # from which the largest of blocks tell where the others cannot lie
_BLOCK = 16  # classes of a block
_PIECE = 2**17  # numbers that are searched at once: they stay in the processor's cache
_LAST_BITS = 2**31 - 1  # of a float32 from 0 on, and of a place


def top(scores: Tensor, k: int) -> tuple[Array, Array]:
    """Returns the ``k`` largest scores of each row and their classes, the first classes of equals.

    Shapes: (..., classes) -> (..., k) descending and (..., k) int64.
    """
    rows = at_hand(scores)
    if isinstance(rows, Tensor):
        if k <= _MAX_DRAWN_TURNS and _MAX_SORTED_CLASSES < rows.shape[-1] <= _MAX_EXACT:
            return _drawn_in_turns(rows, k)
        ranked = torch.sort(rows, dim=-1, descending=True, stable=True)
        return ranked.values[..., :k], ranked.indices[..., :k]
    flat = rows.reshape(-1, rows.shape[-1])
    shape = (*rows.shape[:-1], k)
    if k < flat.shape[-1] and flat.shape[-1] > _MAX_SORTED_CLASSES:
        places = _in_turns(flat, k) if k <= _MAX_TURNS else _first_largest(flat, k)
        values = taken(flat, places)
        if k > _MAX_TURNS:
            values, order = _descending(values)
            places = taken(places, order)
    else:
        values, places = _descending(flat)
        values, places = values[:, :k], places[:, :k]
    return values.reshape(shape), places.reshape(shape)


def _descending(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Sorts rows of numbers >= 0, the first of equals first. Shapes: (n, K) -> (n, K) twice.

    Floats >= 0 have the order of their bits. With the place appended no two keys are equal, and an
    unstable sort of keys takes half the time of a stable one of places.
    """
    if rows.dtype != np.float32 or len(rows) < _MIN_KEYED_ROWS:
        places = (-rows).argsort(-1, kind="stable")
    else:
        bits = (rows + np.float32(0)).view(np.int32)  # adding 0 turns -0 into 0, its equal
        keys = (_LAST_BITS - bits.astype(np.int64)) << 31
        keys += np.arange(rows.shape[-1])
        keys.sort(-1)
        places = keys & _LAST_BITS
    return taken(rows, places), places


def _first_largest(rows: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Returns the classes of the ``k`` largest in their order. Shapes: (n, K) -> (n, k).

    Among equals the first are taken, in the same way where there are none: how long it takes must
    not tell whether small probabilities vanished.
    """
    classes = rows.shape[-1]
    places = np.empty((len(rows), k), dtype=np.int64)
    step = max(1, _PIECE // classes)
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        level = _level(piece, k)
        chosen, equal = piece > level, piece == level
        room = k - np.count_nonzero(chosen, axis=-1)[:, None]
        equal &= equal.cumsum(-1, dtype=np.int32) <= room
        chosen |= equal
        places[start : start + step] = (np.flatnonzero(chosen) % classes).reshape(-1, k)
    return places


def _level(rows: NDArray[Any], k: int) -> NDArray[Any]:
    """Returns the ``k``-th largest of each row. Shapes: (n, K) -> (n, 1).

    Of many classes it lies in one of the ``k`` blocks whose own largest are the largest.
    """
    blocks, rest = divmod(rows.shape[-1], _BLOCK)
    if rows.shape[-1] >= max(_MIN_BLOCKED_CLASSES, 2 * _BLOCK * k):
        cut = rows.shape[-1] - rest
        in_blocks = rows[:, :cut].reshape(len(rows), _BLOCK, blocks)
        best = np.argpartition(in_blocks.max(1), blocks - k, axis=-1)[:, blocks - k :]
        found = np.take_along_axis(in_blocks, best[:, None], axis=-1).reshape(len(rows), -1)
        rows = np.concatenate((found, rows[:, cut:]), axis=-1)
    place = rows.shape[-1] - k
    level: NDArray[Any] = np.partition(rows, place, axis=-1)[:, place, None]
    return level


def _in_turns(rows: NDArray[Any], k: int) -> NDArray[np.int64]:
    places = np.empty((len(rows), k), dtype=np.int64)
    step = max(1, _PIECE // rows.shape[-1])
    for start in range(0, len(rows), step):
        left = rows[start : start + step].copy()
        every = np.arange(len(left))
        for turn in range(k):
            found = left.argmax(-1)
            places[start : start + step, turn] = found
            left[every, found] = -np.inf
    return places


def _drawn_in_turns(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Does the same as a sort in a graph. Shapes: (..., K) -> (..., k) twice."""
    values, places = [], []
    count = rows.shape[-1]
    every = row_of(0, count, rows).to(torch.float32)  # exact, and compared many at once
    for _ in range(k):
        values.append(rows.amax(-1, keepdim=True))
        first = torch.where(rows == values[-1], every, torch.inf).amin(-1, keepdim=True)
        places.append(first.clamp_max(count - 1).to(torch.int64))  # of a row that is refused, any
        rows = rows.masked_fill(every == first, -torch.inf)
    return joined(values), joined(places)


def keep_top(probabilities: Tensor, k: int) -> Tensor:
    """Marks the ``k`` largest entries of each row; among equals the first classes win.

    Shapes: (..., classes) -> (..., classes) bool with exactly k true in every row.
    """
    places = as_tensor(top(probabilities, k)[1])
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter_(-1, places, True)
