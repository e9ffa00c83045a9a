"""Sources of noise: the operating system for released answers, a seed for reproducible audits.

Noise never comes from a backend's generator: those are seeded with 31 or 32 bits, repeat in forked
workers, and can be recovered from a few answers. ``os.urandom`` asks the kernel on every call and
has no state that a fork could copy.
"""

import math
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shieldnet.core.errors import ConfigError
from shieldnet.core.exact_tables import FLIP_TICKS, coin_table, gaussian_table, laplace_table
from shieldnet.core.opaque_ops import opaque
from shieldnet.runtime import Source, Table, drawn, looked_up, random_bytes

MAX_STEPS = 1024
"""The finest grid: a Gaussian's deviation is at most this many steps (limits the table size)."""
MAX_LAPLACE_STEPS = 64
"""The same for a Laplace scale, whose tails are longer."""

_PIECE = 2**17  # numbers of a lattice drawn at once: they fit into the processor's cache
_TABLE_DEVIATION, _LEVEL, _RUN = 4096, 1024, 64
_TABLE_BITS = 256
_TAIL_DEVIATIONS = 19  # 2^256 times the mass beyond is below 1
_OPEN = -(2**15)
VARIATION = 2.0**-230
"""Bounds the total variation of one ``lattice_gaussian`` number from the discrete Gaussian."""

_source: ContextVar[Source] = ContextVar("_source", default=os.urandom)
_replayed: ContextVar[int | None] = ContextVar("_replayed", default=None)


@contextmanager
def replayed_noise(seed: int) -> Iterator[None]:
    """Draws the noise of this context from ``seed``, for reproducible audits.

    Not for serving: anyone who knows the seed knows the noise. Other threads are not affected.
    """
    with _drawn_from(seed, np.random.default_rng(seed).bytes):
        yield


@contextmanager
def noise_about(*about: object) -> Iterator[None]:
    """Derives replayed noise of this context from the seed and ``about``.

    The same query then gets the same noise, whatever was asked before. If noise is not replayed, it
    comes from the operating system as usual.
    """
    seed = _replayed.get()
    if seed is None:
        yield
        return
    word = int.from_bytes(sha256(repr(about).encode()).digest()[:8], "little")
    with _drawn_from(seed, np.random.default_rng([seed, word]).bytes):
        yield


@contextmanager
def _drawn_from(seed: int, source: Source) -> Iterator[None]:
    token, replayed = _source.set(source), _replayed.set(seed)
    try:
        yield
    finally:
        _source.reset(token)
        _replayed.reset(replayed)


@opaque(lambda count: torch.empty(count, dtype=torch.int64), draws=True)
def random_words(count: int) -> Tensor:
    """Draws ``count`` 64-bit words, uniform over the signed integers.

    Shapes: -> (count,) int64 on the CPU.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    return torch.frombuffer(bytearray(_random_bytes(8 * count)), dtype=torch.int64)


def bernoulli(count: int, chance: float) -> Tensor:
    """Draws ``count`` bits, each true with ``chance``.

    Shapes: -> (count,) bool on the CPU. Guarantee: probabilities are exact to 2^-64; 1 is exact.
    """
    words = random_words(count)
    limit = int(chance * 2**64)  # exact: a float times a power of two
    if limit >= 2**64:
        return torch.ones(count, dtype=torch.bool)
    return words < limit - 2**63


def random_seed() -> int:
    """Draws a seed for a torch or numpy generator; only for draws that need not be secret."""
    return int(random_words(1)) & (2**63 - 1)


def lattice_levels(deviation: float) -> int:
    """Returns the number of table draws per ``lattice_gaussian`` number, minus one.

    Errors: ConfigError for a deviation that no table covers.
    """
    levels = max(0, math.ceil(math.log(deviation / (1.6 * _TABLE_DEVIATION), _LEVEL)))
    least, most = (times * _TABLE_DEVIATION * _LEVEL**levels for times in (0.4, 1.6))
    if not least < deviation <= most:
        raise ConfigError(
            f"Expected a deviation between {least:g} and {most:g} steps, got {deviation!r}."
        )
    return levels


def lattice_gaussian(count: int, deviation: float) -> Tensor:
    """Draws integers from the discrete Gaussian: P(k) is proportional to exp(-k^2 / 2 deviation^2).

    Shapes: -> (count,) float64 on the CPU, integers below 2^53. deviation: one that
    ``lattice_levels`` accepts.
    Guarantee: for each number, the total variation from a discrete Gaussian whose deviation exceeds
    the given one by a relative error below 2^-40 is below ``VARIATION``.
    For a large deviation it sums draws x_0 + 2^10 x_1 + 2^20 x_2 + ..., which is a discrete
    Gaussian up to a relative error below 2^-400; a table of 256 bits decides each draw, and 16 bits
    nearly always suffice.
    Bytes come from OpenSSL's generator, which is seeded by the operating system, reseeds itself
    after a fork, and is many times faster than the operating system's.
    Source: Micciancio and Walter 2017 (convolution of discrete Gaussians); docs/certificate.md,
    section 7.
    """
    tables = build_lattice_tables(deviation)
    levels = len(tables) - 1
    drawn = np.empty(count)
    for start in range(0, count, _PIECE):
        piece = drawn[start : start + _PIECE]
        # The largest draw is below 2^17: with one level below it, it fits into 32 bits.
        total = np.zeros(len(piece), dtype=np.int32 if levels <= 1 else np.int64)
        for table in tables:
            np.multiply(total, _LEVEL, out=total)
            np.add(total, _from_table(len(piece), table), out=total)
        piece[:] = total
    return torch.from_numpy(drawn)


def build_lattice_tables(deviation: float) -> "list[_LatticeTable]":
    """Returns the tables of ``lattice_gaussian``, which take seconds to build and are kept."""
    levels = lattice_levels(deviation)
    top = deviation
    for _ in range(levels):
        top = math.sqrt(top**2 - _TABLE_DEVIATION**2) / _LEVEL * (1 + 2.0**-45)
    return [_lattice_table(top), *[_lattice_table(float(_TABLE_DEVIATION))] * levels]


class _LatticeTable(NamedTuple):
    """Holds a discrete Gaussian as a mixture of uniform runs of 64 integers and a remainder.

    Each run starts at a multiple of 64 and has 64 times the mass of its least likely integer; the
    remaining mass of every integer is a separate outcome, after all runs. exact: cumulative masses
    of the outcomes, times 2^256. leading: their first 32 bits. values: the integer of each outcome,
    or the first of its run. runs: number of outcomes that are runs. decided: for the first 16 bits
    of a draw, the run's first integer divided by its length, or ``_OPEN`` if more bits are needed.
    """

    exact: tuple[int, ...]
    leading: NDArray[np.uint32]
    values: NDArray[np.int32]
    runs: int
    decided: NDArray[np.int16]


@lru_cache(maxsize=16)
def _lattice_table(deviation: float) -> _LatticeTable:
    last = math.ceil(_TAIL_DEVIATIONS * deviation / _RUN) * _RUN
    half = _gaussian_masses(deviation, last + 1)
    masses = [half[abs(k)] for k in range(-last, last)]
    starts = range(0, len(masses), _RUN)
    least = [min(masses[start : start + _RUN]) for start in starts]
    rest = [mass - least[outcome // _RUN] for outcome, mass in enumerate(masses)]
    places = [outcome for outcome, mass in enumerate(rest) if mass]
    outcomes = [_RUN * mass for mass in least] + [rest[outcome] for outcome in places]
    total = sum(outcomes)
    exact = tuple((below << _TABLE_BITS) // total for below in accumulate(outcomes[:-1]))
    leading = np.array([mass >> (_TABLE_BITS - 32) for mass in exact], dtype=np.uint32)
    values = (np.array([*starts, *places]) - last).astype(np.int32)
    words = np.arange(2**16, dtype=np.uint32) << 16
    low = np.searchsorted(leading, words, side="left")
    high = np.searchsorted(leading, words | np.uint32(0xFFFF), side="right")
    is_run = (low == high) & (low < len(starts))
    decided = np.where(is_run, values[low] // _RUN, _OPEN).astype(np.int16)
    return _LatticeTable(exact, leading, values, len(starts), decided)


def _gaussian_masses(deviation: float, count: int) -> list[int]:
    """Returns 2^384 exp(-k^2 / 2 deviation^2) for k >= 0, with errors below 2^-340 of the first.

    Each is the previous one times q r^k: two integer products.
    """
    import mpmath

    with mpmath.workdps(130):
        exponent = 1 / (2 * mpmath.mpf(deviation) ** 2)
        ratio = int(mpmath.ldexp(mpmath.exp(-exponent), 384))
        change = int(mpmath.ldexp(mpmath.exp(-2 * exponent), 384))
    mass, masses = 1 << 384, []
    for _ in range(count):
        masses.append(mass)
        mass = (mass * ratio) >> 384
        ratio = (ratio * change) >> 384
    return masses


def _from_table(count: int, table: _LatticeTable) -> NDArray[np.int32]:
    words = np.frombuffer(_random_bytes(2 * count), dtype=np.uint16)
    within = np.frombuffer(_random_bytes(count), dtype=np.uint8) & np.uint8(_RUN - 1)
    decided = table.decided.take(words)
    is_open = np.flatnonzero(decided == _OPEN)
    drawn = np.multiply(decided, _RUN, dtype=np.int32)
    drawn += within
    if not len(is_open):
        return drawn
    more = np.frombuffer(_random_bytes(2 * len(is_open)), dtype=np.uint16)
    longer = (words[is_open].astype(np.uint32) << 16) | more
    order = longer.argsort()  # sorted lookups: the table is larger than the cache
    places = np.empty(len(longer), dtype=np.int64)
    places[order] = np.searchsorted(table.leading, longer[order], side="right")
    # Equal leading bits (chance 2^-32 per threshold) are decided by all the other bits.
    ties = np.flatnonzero(table.leading[np.maximum(places - 1, 0)] == longer)
    for tie in ties.tolist():
        tail = int.from_bytes(_random_bytes((_TABLE_BITS - 32) // 8), "little")
        word = (int(longer[tie]) << (_TABLE_BITS - 32)) + tail
        places[tie] = bisect_right(table.exact, word)
    drawn[is_open] = table.values[places] + np.where(places < table.runs, within[is_open], 0)
    return drawn


@opaque(
    lambda shape, deviation, constant_time=False: torch.empty(shape, dtype=torch.int64), draws=True
)
def rounded_gaussian(shape: Sequence[int], deviation: float, constant_time: bool = False) -> Tensor:
    """Draws integers distributed as round(deviation * Z), where Z is standard normal.

    Shapes: -> ``shape`` int64 on the CPU.
    Guarantee: the total variation to the rounded normal is below 5e-32 per number: a 128-bit
        uniform is compared with floor(2^128 Phi((k + 1/2) / deviation)), computed with 60 digits.
    constant_time: whether to read the whole table for every number instead of searching it, so that
        neither branches nor memory accesses depend on the draw, except if 32 bits do not decide
        (with probability table length x 2^-32 per number).
    """
    return _drawn(gaussian_table(deviation), shape, constant_time)


@opaque(lambda shape, scale, constant_time=False: torch.empty(shape, dtype=torch.int64), draws=True)
def rounded_laplace(shape: Sequence[int], scale: float, constant_time: bool = False) -> Tensor:
    """Draws integers distributed as round(X), where X is Laplace distributed with ``scale``.

    Shapes and guarantee: as in ``rounded_gaussian``, with a table of the Laplace distribution.
    """
    return _drawn(laplace_table(scale), shape, constant_time)


@opaque(lambda shape, epsilon: torch.empty(shape, dtype=torch.int64), draws=True)
def coin_reach(shape: Sequence[int], epsilon: float) -> Tensor:
    """Draws the smallest number of ticks at which a biased draw fails.

    At t ticks it succeeds with probability exp(-epsilon t / (2 FLIP_TICKS)), for all t at once.

    Shapes: -> ``shape`` int64 on the CPU, from 1 (0 ticks always succeed) to FLIP_TICKS + 1.
    Guarantee: every probability is exact to 2^-128.
    """
    return FLIP_TICKS + 1 - _drawn(coin_table(epsilon), shape, constant_time=False)


def by_table(words: Tensor, table: Table) -> Tensor:
    """Returns the integers that uniform 32-bit words select; ties select the upper one.

    Shapes: words (n,) int32 -> (n,) int64.
    """
    unsigned = words.numpy().view(np.uint32) ^ np.uint32(2**31)
    return torch.from_numpy(looked_up(unsigned, table)).add_(table.first)


def _drawn(table: Table, shape: Sequence[int], constant_time: bool) -> Tensor:
    numbers = drawn(math.prod(shape), table, _random_bytes, constant_time)
    return torch.from_numpy(numbers).reshape(tuple(shape))


def _random_bytes(count: int) -> bytes:
    """Asks this context's source."""
    source = _source.get()
    return random_bytes(count) if source is os.urandom else source(count)
