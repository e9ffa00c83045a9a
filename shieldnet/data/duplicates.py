"""Near duplicates: records of two sets that differ only by a cast, a copy or rounding."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.core.statistics import random_sums

_SUMS = 64
_AT_ONCE = 10**7  # distances
_ROWS, _COLUMNS = 256, 256  # held in float64 at once
_CAST = 1e-6  # relative: covers float32 rounding and a factor of 1 + 1e-7
_CAST_APART, _APART = 1e-4, 0.05  # standard deviations, root mean square over the columns
_CLOSER = 0.05  # largest ratio of distances: to the other record, to its own set's nearest
_MAX_SORTED_ROWS = 1000
_MIN_DISTINCT_VALUES = 20  # of a column whose values two records rarely share by chance
_MIN_COLUMNS = 4  # in which two records must differ; with fewer they can be near by chance


def near_duplicates(first: Tensor, second: Tensor) -> Tensor:
    """Finds pairs of rows that are one record: the nearest of ``first`` to each of ``second``.

    Two rows are duplicates if they are twenty times nearer to each other than either is to the
    nearest record of its own set, and if they either differ in every number by a cast or copy at
    most, or are near although at least four numbers differ (rounded, or slightly changed).
    Naturally similar records are as similar within a set. Copies of a record that has another near
    duplicate in its own set are not found. Integers are tokens or counts, which have no near
    duplicates: there are no pairs.
    Shapes: first (n, ...), second (m, ...) -> (pairs, 2), rows of first and of second.
    """
    if not (first.is_floating_point() and second.is_floating_point()):
        return torch.empty(0, 2, dtype=torch.int64)
    rows = [inputs.detach().cpu().flatten(1) for inputs in (first, second)]
    scale = _Scale.of(torch.cat(rows))
    short = [scale.sums(flat) for flat in rows]
    nearest = _nearest(short[0], short[1])
    is_one, apart = scale.compared(rows[0], nearest, rows[1])
    matches = is_one.nonzero().flatten()
    sides = (
        _to_the_next(rows[0], short[0], nearest[matches], scale),
        _to_the_next(rows[1], short[1], matches, scale),
    )
    matches = matches[apart[matches] <= _CLOSER * torch.minimum(*sides)]
    return torch.stack([nearest[matches], matches], 1)


@dataclass(frozen=True)
class _Scale:
    """Measures distances in standard deviations of every column, a few rows at a time.

    Shapes: center and unit (columns,), in float64; a constant column has unit 1. fine: number of
    columns with many distinct values.
    """

    center: Tensor
    unit: Tensor
    fine: int

    @classmethod
    def of(cls, pool: Tensor) -> "_Scale":
        """Measures the columns of both sets. Shapes: pool (rows, columns)."""
        parts = (torch.std_mean(columns.double(), 0) for columns in pool.split(_COLUMNS, 1))
        deviation, center = (torch.cat(values) for values in zip(*parts, strict=True))
        some = pool[:_MAX_SORTED_ROWS].sort(0).values
        fine = int(((some[1:] != some[:-1]).sum(0) >= _MIN_DISTINCT_VALUES).sum())
        return cls(center, deviation.where(deviation > 0, 1.0), fine)

    def sums(self, rows: Tensor) -> Tensor:
        """Projects rows to random sums. Shapes: (rows, columns) -> (rows, at most 64)."""
        parts = ((part.double() - self.center) / self.unit for part in rows.split(_ROWS))
        return torch.cat([random_sums(part.float(), _SUMS) for part in parts])

    def compared(self, rows: Tensor, places: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Returns which rows at ``places`` equal the others, and the distance of each pair.

        Shapes: rows (n, columns), places (m,), others (m, columns) -> (m,) bool, (m,).
        """
        answers = [
            self._compared(rows[at].double(), other.double())
            for at, other in zip(places.split(_ROWS), others.split(_ROWS), strict=True)
        ]
        is_one, apart = zip(*answers, strict=True)
        return torch.cat(is_one), torch.cat(apart)

    def _compared(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        apart = ((first - second) / self.unit).square().mean(1).sqrt()
        size = torch.maximum(first.abs(), second.abs())
        is_cast = ((first - second).abs() <= _CAST * size).all(1) & (apart <= _CAST_APART)
        differ = (first != second).sum(1) >= _MIN_COLUMNS
        is_near = (apart <= _APART) & differ
        if self.fine >= _MIN_COLUMNS:
            is_near |= apart <= _CAST_APART
        return is_near | is_cast, apart


def _to_the_next(rows: Tensor, short: Tensor, places: Tensor, scale: _Scale) -> Tensor:
    """Returns the distance from the rows at ``places`` to the nearest other row of their set.

    Shapes: rows (n, d), short (n, k), places (p,) -> (p,).
    """
    if len(rows) < 2 or not len(places):
        return torch.full((len(places),), torch.inf, dtype=torch.float64)
    other = _nearest(short, short[places], but=places)
    return scale.compared(rows, other, rows[places])[1]


def _nearest(known: Tensor, queries: Tensor, but: Tensor | None = None) -> Tensor:
    """Returns the row of ``known`` nearest to each query, except the row ``but`` of each.

    Shapes: known (n, d), queries (m, d), but (m,) -> (m,).
    """
    size = max(1, _AT_ONCE // len(known))
    places = []
    for start in range(0, len(queries), size):
        distances = torch.cdist(queries[start : start + size], known)
        if but is not None:
            distances.scatter_(1, but[start : start + size].unsqueeze(1), torch.inf)
        places.append(distances.argmin(1))
    return torch.cat(places)
