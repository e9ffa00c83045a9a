"""Per-record gradients as sums of factored parts, measured and clipped without expansion."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_SPREAD = 256.0
"""A record's gradient is also clipped if the products that it sums up are together this many times
the clip norm long, which bounds the rounding error caused by cancellation."""
_MARGIN = 1 - 2.0**-20  # of the clip norm: covers the rounding of norms, factors and products
_RAMP = 0.1  # of the clip norm, on either side of it, where a gradient counts in part
_MAX_LENGTH = 1e100


def clip_factors(norms: Tensor, clip: float) -> Tensor:
    """Returns the factors that clip gradients of these norms to at most ``clip``.

    Shapes: norms (records,) finite, float64 -> (records,). A margin covers the rounding.
    Source: Abadi et al. 2016, Algorithm 1 (arXiv:1607.00133).
    """
    return (clip * _MARGIN / norms).clamp_max(1.0)


class Part(ABC):
    """Holds one summand of every record's gradient of one weight."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Returns an upper bound on the number of float operations of a squared norm."""

    @abstractmethod
    def measured(self) -> tuple[Tensor, Tensor]:
        """Returns squared norms in float64, and spreads.

        A spread bounds the norm of the sum of absolute products. Shapes: -> (records,) each.
        """

    @abstractmethod
    def add(self, total: Tensor, factors: Tensor, rows: Tensor | slice) -> None:
        """Adds the gradients of rows, each times its factor, to a float64 total in place."""

    @abstractmethod
    def length(self) -> float:
        """Bounds the norm of all gradients together."""

    @abstractmethod
    def distance(self, row: int, alone: Any) -> float:
        """Bounds the distance between a row's gradient and the single one in another part."""


@dataclass(frozen=True)
class Whole(Part):
    """Holds the gradients themselves. Shapes: each (records, *weight)."""

    each: Tensor

    @property
    def size(self) -> int:
        return self.each[:1].numel()

    def measured(self) -> tuple[Tensor, Tensor]:
        norms = _lengths(self.each.flatten(1))
        return norms.square(), norms

    def add(self, total: Tensor, factors: Tensor, rows: Tensor | slice) -> None:
        each = self.each[rows].flatten(1)
        total.view(-1).addmv_(each.double().T, factors)

    def length(self) -> float:
        return _norm(self.each)

    def distance(self, row: int, alone: "Whole") -> float:
        return _norm(self.each[row] - alone.each[0])


@dataclass(frozen=True)
class Products(Part):
    """Holds gradients of a matrix as sums of outer products, as for a linear layer.

    Shapes: left (records, terms, rows), right (records, terms, columns).
    Source of the norms: Goodfellow 2015 (arXiv:1510.01799); Li et al. 2022 (arXiv:2110.05679).
    """

    left: Tensor
    right: Tensor

    @property
    def size(self) -> int:
        return self.left.shape[1] ** 2 + self.left.shape[2] + self.right.shape[2]

    def measured(self) -> tuple[Tensor, Tensor]:
        spreads = (_lengths(self.left) * _lengths(self.right)).sum(1)
        if self.left.shape[1] == 1:
            return spreads.square(), spreads
        left, right = self.left.double(), self.right.double()
        return (left @ left.mT).mul_(right @ right.mT).sum((1, 2)), spreads

    def add(self, total: Tensor, factors: Tensor, rows: Tensor | slice) -> None:
        left = self.left[rows].double() * factors[:, None, None]
        total.addmm_(left.flatten(0, 1).T, self.right[rows].double().flatten(0, 1))

    def length(self) -> float:
        return _norm(self.left) * _norm(self.right)

    def distance(self, row: int, alone: "Products") -> float:
        left, right = alone.left[0], alone.right[0]
        by_left = _norm(self.left[row] - left) * _norm(right)
        return by_left + _norm(self.left[row]) * _norm(self.right[row] - right)


@dataclass(frozen=True)
class Rows(Part):
    """Holds gradients of an embedding table, one row per lookup.

    Shapes: places (records, terms), each (records, terms, columns). unused: row without gradient.
    """

    places: Tensor
    each: Tensor
    unused: int

    @property
    def size(self) -> int:
        return self.each.shape[1] ** 2 + self.each.shape[2]

    def measured(self) -> tuple[Tensor, Tensor]:
        each = self.used().double()
        same = self.places[:, :, None] == self.places[:, None, :]
        return (each @ each.mT).mul_(same).sum((1, 2)), _lengths(each).sum(1)

    def add(self, total: Tensor, factors: Tensor, rows: Tensor | slice) -> None:
        each = self.used()[rows].double() * factors[:, None, None]
        total.index_add_(0, self.places[rows].flatten(), each.flatten(0, 1))

    def length(self) -> float:
        return math.sqrt(self.each.shape[1]) * _norm(self.each)

    def distance(self, row: int, alone: "Rows") -> float:
        if not torch.equal(self.places[row], alone.places[0]):
            return math.inf
        return _norm(self.each[row] - alone.each[0])

    def used(self) -> Tensor:
        """Returns the gradients, with 0 for the unused row."""
        return self.each.masked_fill((self.places == self.unused)[:, :, None], 0.0)


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _lengths(tensor: Tensor) -> Tensor:
    """Returns the norms along the last axis, in float64, and inf above ``_MAX_LENGTH``.

    Only float64 numbers reach that. With a factor below it, the loss from squares that underflow
    to 0 in float64 is below 1e-50, negligible relative to the smallest clip norm, 1e-30.
    """
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=-1, dtype=torch.float64)
    if tensor.dtype != torch.float64:
        return norms
    return norms.masked_fill(norms > _MAX_LENGTH, math.inf)


def _inner(products: Products, rows: Rows) -> Tensor:
    """Returns the inner product of two parts of one weight, for every record."""
    records, terms, _ = products.left.shape
    at = rows.places[:, None, :].expand(records, terms, -1)
    left = products.left.gather(2, at).double()
    right = products.right.double() @ rows.used().double().mT
    return (left * right).sum((1, 2))


@dataclass(frozen=True)
class Gradient:
    """Holds every record's gradient of one weight as a sum of parts."""

    parts: tuple[Part, ...]

    def measured(self) -> tuple[Tensor, Tensor]:
        """Returns upper bounds on squared norms, and spreads. Shapes: -> (records,) each.

        The float64 error of a squared norm is at most the number of operations times 2^-52 times
        the squared spread.
        """
        products = [part for part in self.parts if isinstance(part, Products)]
        looked_up = [part for part in self.parts if isinstance(part, Rows)]
        squares, spreads = zip(*(part.measured() for part in self.parts), strict=True)
        crossed = [2 * _inner(pair, rows) for pair in products for rows in looked_up]
        spread: Tensor = sum(spreads)
        rounding = 2.0**-52 * 4 * sum(part.size for part in self.parts)
        total: Tensor = sum([*squares, *crossed])  # type: ignore[assignment]  # never empty
        return total.clamp_min(0) + rounding * spread.square(), spread


def clipped_sum(gradients: Sequence[Gradient], clip: float, totals: Sequence[Tensor]) -> Tensor:
    """Adds each record's gradient, clipped to an L2 norm of ``clip`` over all weights, to totals.

    Returns the number of gradients no longer than ``clip``. One of about that length counts in
    part, so that the last digit of a norm, which may depend on the batch, barely moves the count.
    Shapes: totals float64 in the shape of every weight, changed in place; -> () float64.
    Guarantee: up to the rounding of sums, bounded by ``sum_error``, one record moves the totals by
    at most ``clip``: a gradient that is not finite, or too large to have a finite norm, counts as
    0. It is not reported, since that would reveal its record.
    """
    measured = [gradient.measured() for gradient in gradients]
    norms = torch.stack([squares for squares, _ in measured]).sum(0).sqrt()
    spreads = torch.stack([spread for _, spread in measured]).square().sum(0).sqrt()
    factors = torch.minimum(clip_factors(norms, clip), clip_factors(spreads, MAX_SPREAD * clip))
    rows: Tensor | slice = slice(None)
    sound = torch.isfinite(norms) & torch.isfinite(spreads)
    if not sound.all():
        rows = sound.nonzero()[:, 0]
        factors = factors[rows]
    for gradient, total in zip(gradients, totals, strict=True):
        for part in gradient.parts:
            part.add(total, factors, rows)
    shorter = (0.5 + (1 - norms / clip) / (2 * _RAMP)).clamp(0, 1)
    return torch.where(sound, shorter, 0.0).sum()


def sum_error(records: int, physical: int, terms: int, *, scaled: bool = False) -> float:
    """Bounds the error of ``clipped_sum`` over physical batches, in clip norms.

    Each physical batch is summed separately and then added to the total.
    terms: largest number of products in one record's gradient of a weight. A float64 sum of n
    numbers, in any order, has an error of at most n 2^-52 times the sum of their absolute values
    (n < 2^51), and over all weights that sum is at most ``MAX_SPREAD`` clip norms per record, or
    one if every gradient is a single product. scaled: whether the sum is then multiplied by a
    number, which rounds it once more.
    Source: Higham 2002, section 4.2.
    """
    spread = 1.0 if terms == 1 else MAX_SPREAD
    return 2.0**-52 * records * (physical * terms * spread + records + scaled)
