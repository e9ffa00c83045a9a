"""Named sources of noise: the operating system's for what is released, a seed's for an audit.

Noise never comes from a backend's generator: those start from 31 or 32 bits, repeat in forked
workers, and can be recovered from a few answers. ``os.urandom`` asks the kernel at every call, so
it has no state that a fork could copy.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Source = Callable[[int], bytes]
"""Returns as many random bytes as it is asked for."""

MAX_STEPS = 1024
"""The finest grid: a standard deviation spans at most this many steps (the table's size)."""

_source: ContextVar[Source] = ContextVar("_source", default=os.urandom)


@contextmanager
def replayed_noise(seed: int) -> Iterator[None]:
    """Draws the noise of this context from ``seed``: for audits that must be repeatable.

    Not for serving: whoever knows the seed knows the noise. Other threads are not affected.
    """
    token = _source.set(np.random.default_rng(seed).bytes)
    try:
        yield
    finally:
        _source.reset(token)


def random_words(count: int) -> Tensor:
    """Draws ``count`` 64-bit words, uniform over the signed integers.

    Shapes: -> (count,) int64 on the CPU.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    return torch.frombuffer(bytearray(_source.get()(8 * count)), dtype=torch.int64)


def rounded_gaussian(shape: Sequence[int], deviation: float) -> Tensor:
    """Draws integers distributed as round(deviation * Z) with Z a standard normal.

    Shapes: -> ``shape`` float64 on the CPU, every element a whole number.
    Guarantee: the total variation to the rounded normal is below 5e-32 per number: a 128-bit
        uniform is compared with floor(2^128 Phi((k + 1/2) / deviation)), computed with 60 digits.
    NOT promised: constant time. The lookup is a binary search whose memory accesses depend on the
        draw.
    """
    high, exact, first = _thresholds(deviation)
    words = random_words(math.prod(shape))
    index = torch.searchsorted(high, words, right=True)
    # Equal leading words leave the order open (probability about 2^-64 each): 64 more bits decide.
    for place in (high[index - 1] == words).nonzero().flatten().tolist():
        low = int(random_words(1).item()) + 2**63
        draw = ((int(words[place].item()) + 2**63) << 64) + low
        index[place] = sum(threshold <= draw for threshold in exact)
    return (index + first).to(torch.float64).reshape(tuple(shape))


@lru_cache(maxsize=64)
def _thresholds(deviation: float) -> tuple[Tensor, tuple[int, ...], int]:
    """Builds the cumulative table: leading words, 128-bit thresholds, the first integer."""
    import mpmath

    last = math.ceil(13.4 * deviation) + 1  # 2^128 * Phi(-13.4) < 1e-2: nothing lies beyond
    with mpmath.workdps(60):
        scale = mpmath.mpf(deviation)
        upper = [
            int(mpmath.floor(mpmath.ldexp(mpmath.ncdf((k + mpmath.mpf("0.5")) / scale), 128)))
            for k in range(-last, last)
        ]
    exact = tuple(min(threshold, 2**128) for threshold in upper)
    leading = [min(threshold >> 64, 2**64 - 1) - 2**63 for threshold in exact]
    return torch.tensor(leading, dtype=torch.int64), exact, -last
