"""Tables of cumulative probabilities to 128 bits, and which integers random words choose."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FLIP_TICKS = 1024
"""Grid of the scores between which ``coin_reach`` decides."""

_OPEN = -1
_MAX_COMPARED = 2**22  # comparisons that a scan holds in memory at once


class Table(NamedTuple):
    """Cumulative probabilities times 2^128, and what makes a lookup quick.

    leading: their first 32 bits. exact: all 128. first: the integer below the first of them.
    decided: for the first 16 bits of a draw, how many probabilities lie below all such draws, or
    -1 where the other bits have a say. ordered: the leading bits as Python's integers.
    """

    leading: NDArray[np.uint32]
    exact: tuple[int, ...]
    first: int
    decided: NDArray[np.int16]
    ordered: tuple[int, ...]


Find = Callable[[NDArray[np.uint32], Table], NDArray[np.int64]]
"""Counts, for every word, the leading bits that are no larger."""


def looked_up(words: NDArray[np.uint32], table: Table) -> NDArray[np.int64]:
    """Counts by the first 16 bits, which nearly always decide and whose table stays in the cache.

    Shapes: (n,) -> (n,).
    """
    indices = table.decided.take(words >> np.uint32(16)).astype(np.int64)
    is_open = np.flatnonzero(indices == _OPEN)
    indices[is_open] = table.leading.searchsorted(words[is_open], "right")
    return indices


def scanned(words: NDArray[np.uint32], table: Table) -> NDArray[np.int64]:
    """Counts by comparing every word with the whole table, whatever it is. Shapes: (n,) -> (n,)."""
    most = max(1, _MAX_COMPARED // len(table.leading))
    parts = [words[start : start + most] for start in range(0, len(words), most)]
    return np.concatenate([(part[:, None] >= table.leading).sum(1) for part in parts] or [[]])


@lru_cache(maxsize=64)
def gaussian_table(deviation: float) -> Table:
    """Returns the table of round(deviation * Z)."""
    import mpmath

    last = math.ceil(13.4 * deviation) + 1  # 2^128 * Phi(-13.4) < 1e-2: nothing lies beyond
    with mpmath.workdps(60):
        half, scale = mpmath.mpf("0.5"), mpmath.mpf(deviation)
        chances = [mpmath.ncdf((k + half) / scale) for k in range(-last, last)]
        return _table(chances, -last)


@lru_cache(maxsize=64)
def laplace_table(scale: float) -> Table:
    """Returns the table of round(X) with X a Laplace variable of ``scale``."""
    import mpmath

    last = math.ceil(89 * scale) + 1  # 2^128 * exp(-89) / 2 < 1
    with mpmath.workdps(60):
        half, width = mpmath.mpf("0.5"), mpmath.mpf(scale)
        tails = [mpmath.exp(-(k + half) / width) / 2 for k in range(last)]
        return _table([*reversed(tails), *(1 - tail for tail in tails)], -last)


@lru_cache(maxsize=64)
def coin_table(epsilon: float) -> Table:
    """Returns the table of from how many ticks on a coin shows tails, counted from the last."""
    import mpmath

    with mpmath.workdps(60):
        rate = mpmath.mpf(epsilon) / (2 * FLIP_TICKS)
        return _table([mpmath.exp(-rate * tick) for tick in range(FLIP_TICKS, -1, -1)], 0)


def _table(chances: Sequence[object], first: int) -> Table:
    import mpmath

    exact = tuple(min(int(mpmath.floor(mpmath.ldexp(chance, 128))), 2**128) for chance in chances)
    ordered = tuple(min(threshold >> 96, 2**32 - 1) for threshold in exact)
    leading = np.array(ordered, dtype=np.uint32)
    words = np.arange(2**16, dtype=np.uint32) << 16
    low = leading.searchsorted(words, "left")
    high = leading.searchsorted(words | np.uint32(0xFFFF), "right")
    # Past the last threshold nothing is to be compared with: such draws are looked up in full.
    decided = np.where((low == high) & (low < len(leading)), low, _OPEN).astype(np.int16)
    return Table(leading, exact, first, decided, ordered)
