"""Tables of cumulative probabilities to 128 bits, by which ``shieldnet.runtime`` draws."""

import math
from collections.abc import Sequence
from functools import lru_cache

from shieldnet.runtime import Table

FLIP_TICKS = 1024
"""Grid of the scores between which ``coin_reach`` decides."""


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
    """Returns the table by which ``coin_reach`` draws, counted from the last tick."""
    import mpmath

    with mpmath.workdps(60):
        rate = mpmath.mpf(epsilon) / (2 * FLIP_TICKS)
        return _table([mpmath.exp(-rate * tick) for tick in range(FLIP_TICKS, -1, -1)], 0)


def _table(chances: Sequence[object], first: int) -> Table:
    import mpmath

    exact = tuple(min(int(mpmath.floor(mpmath.ldexp(chance, 128))), 2**128) for chance in chances)
    return Table.of(exact, first)
