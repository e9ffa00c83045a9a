"""What a ledger counts: whole micro-bits, nano-rho and queries, always rounded up."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from shieldnet.privacy.cost import PrivacyCost

INFINITE = 2**53 - 1
"""Stands for more than any ledger counts; every store holds it exactly. It absorbs: infinite plus
or minus anything stays infinite."""

_MICRO, _NANO = 10**6, 10**9
# Ceiling for charges and floor for limits: no rounding is in the client's favor.
Rounding = Callable[[Fraction], int]


class Units(NamedTuple):
    """Counts of what was spent: micro-bits, nano-rho (rho = mu^2 / 2) and answers.

    All three add over answers: bits add, and mu adds in squares.
    """

    bits: int = 0
    rho: int = 0
    queries: int = 0

    def plus(self, other: Units) -> Units:
        """Adds; what is infinite stays infinite."""
        pairs = zip(self, other, strict=True)
        return Units(
            *(mine if mine == INFINITE else min(mine + more, INFINITE) for mine, more in pairs)
        )

    def minus(self, other: Units) -> Units:
        """Subtracts, down to negative numbers; what is infinite stays infinite."""
        bits, rho, queries = self
        return Units(  # written out: every charge comes by here
            bits if bits == INFINITE else bits - other[0],
            rho if rho == INFINITE else rho - other[1],
            queries if queries == INFINITE else queries - other[2],
        )

    def times(self, count: int) -> Units:
        """Multiplies by a whole number of answers."""
        bits, rho, queries = self
        return Units(
            min(bits * count, INFINITE), min(rho * count, INFINITE), min(queries * count, INFINITE)
        )

    def at_most(self, other: Units) -> Units:
        """Returns the smaller count of each."""
        return Units(*map(min, self, other))

    def short_of(self, need: Units) -> Units:
        """Returns what is missing to cover a need."""
        pairs = zip(self, need, strict=True)
        return Units(*(0 if mine >= wanted else wanted - mine for mine, wanted in pairs))

    def where_short(self, short: Units) -> Units:
        """Returns these counts where something is short, and 0 elsewhere."""
        pairs = zip(self, short, strict=True)
        return Units(*(mine if missing else 0 for mine, missing in pairs))

    def negative(self) -> Units:
        """Returns what takes these units back; what is infinite is not taken back."""
        return Units(*(0 if mine == INFINITE else -mine for mine in self))

    def covers(self, other: Units) -> bool:
        """Returns whether no count is smaller than the other's."""
        return self[0] >= other[0] and self[1] >= other[1] and self[2] >= other[2]


NOTHING = Units()


@lru_cache(maxsize=1024)
def units_of(cost: PrivacyCost) -> Units:
    """Returns what one answer of this cost is charged, each count rounded up."""
    return Units(_micro_bits(cost.bits, math.ceil), _nano_rho(cost.mu, math.ceil), 1)


def limits_of(bits: float | None, mu: float | None, queries: int | None) -> Units:
    """Returns the largest counts within the limits, rounded down; None is no limit."""
    return Units(
        INFINITE if bits is None else _micro_bits(bits, math.floor),
        INFINITE if mu is None else _nano_rho(mu, math.floor),
        INFINITE if queries is None else min(queries, INFINITE),
    )


def _micro_bits(bits: float, rounded: Rounding) -> int:
    return INFINITE if math.isinf(bits) else min(rounded(Fraction(bits) * _MICRO), INFINITE)


def _nano_rho(mu: float, rounded: Rounding) -> int:
    return INFINITE if math.isinf(mu) else min(rounded(Fraction(mu) ** 2 / 2 * _NANO), INFINITE)


def mu_of(rho: int) -> float:
    """Returns the mu of a count of nano-rho; inf for an infinite one."""
    return math.inf if rho == INFINITE else math.sqrt(2 * rho / _NANO)


def bits_of(micro_bits: int) -> float:
    """Returns the bits of a count of micro-bits; inf for an infinite one."""
    return math.inf if micro_bits == INFINITE else micro_bits / _MICRO
