"""The units in which images and tables are scored."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.attacks.adversary.ranks import Ranks
from shieldnet.findings.reading import BY_RANKS, BY_VALUES

_CUT = 0.005  # of the rows on each side of a column: further out, values count as these
_HEAVY = 6.0  # kurtosis, as of a Laplace distribution: 3 of a normal one, 9 of an exponential one
_LIGHTER = 0.8  # of its kurtosis, at most, is left to a column that is read by its ranks


@dataclass(frozen=True)
class Scale:
    """Maps inputs to the units in which they are scored.

    Each column of a table has its own deviation; the pixels of an image share one. weights: of
    each feature in a sum of squared errors.
    """

    shape: torch.Size
    center: Tensor
    deviation: Tensor
    weights: Tensor

    @classmethod
    def of(cls, inputs: Tensor) -> "Scale":
        """Measures the inputs. Shapes: (rows, columns) is a table; anything else is an image."""
        flat = inputs.flatten(1).float()
        deviation = flat.std(0) if inputs.dim() == 2 else flat.std().expand(flat.shape[1])
        deviation = deviation.where(deviation > 0, 1.0)
        return cls(inputs.shape[1:], flat.mean(0), deviation, torch.ones(flat.shape[1]))

    def apply(self, inputs: Tensor) -> Tensor:
        """Returns (rows, features)."""
        return (inputs.flatten(1).float() - self.center) / self.deviation

    def undo(self, features: Tensor) -> Tensor:
        """Returns (rows, features) in the inputs' own units."""
        return features * self.deviation + self.center

    def shaped(self, per_feature: Tensor) -> Tensor:
        """Returns a number per feature in the shape of one input."""
        return per_feature.reshape(self.shape)

    def named(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        """Names every feature by its column."""
        return columns

    @property
    def notes(self) -> tuple[str, ...]:
        """Says of every feature in which units it is scored, where these are unusual."""
        return ("",) * len(self.weights)

    def settled(self, share: Tensor, least: Tensor) -> Tensor:
        """Returns the weights with which features are scored, once it is known what is learned.

        Shapes: share and least (features,), what is saved of each beyond the label and its lower
        bound, on rows that are not scored -> (features,).
        """
        return self.weights


@dataclass(frozen=True)
class Columns(Scale):
    """Maps the columns of a table to units in which no outlier and no rare value counts for all.

    Each column is cut at the least and greatest values but ``_CUT`` of the rows on each side (one
    at least), and measured in the deviation that is left. A heavy-tailed one is read by its ranks
    instead, uncut. weights: of each column in a sum of squared errors: 3 / kurtosis, at most 1, so
    that a column whose variance lies in few rows counts as far as these are many; 0 where nothing
    varies after the cut. Multiplying a column, or adding to it, changes nothing.
    Shapes: low, high and weights (columns,). ranks: of columns, by their places.
    """

    low: Tensor
    high: Tensor
    ranks: dict[int, Ranks]

    @classmethod
    def of(cls, inputs: Tensor, *, by_rank: bool = True) -> "Columns":
        """Measures a table; by_rank: also heavy-tailed columns. Shapes: (rows, columns)."""
        rows = inputs.double()
        low, high = usual(rows)
        varies = high > low
        kept = rows.clamp(low, high)
        ranks = _heavy(rows, kept, varies) if by_rank else {}
        kept = _ranked(rows, kept, ranks)
        deviation = _deviation(kept).where(varies, 1.0)
        weights = (3 / _kurtosis(kept).clamp_min(3.0)).where(varies, 0.0)
        return cls(inputs.shape[1:], kept.mean(0), deviation, weights.float(), low, high, ranks)

    def apply(self, inputs: Tensor) -> Tensor:
        rows = inputs.double()
        kept = _ranked(rows, rows.clamp(self.low, self.high), self.ranks)
        return ((kept - self.center) / self.deviation).float()

    def undo(self, features: Tensor) -> Tensor:
        rows = features * self.deviation + self.center
        if self.ranks:
            columns = list(rows.unbind(1))
            for place, ranks in self.ranks.items():  # a loop over columns, not over rows
                columns[place] = ranks.undo(columns[place])
            rows = torch.stack(columns, 1)
        return rows.float()


@dataclass(frozen=True)
class InBothUnits(Scale):
    """Reads heavy-tailed columns twice: by their ranks, and in their own units, side by side.

    Ranks show what is given away of the order, own units what is given away of the few largest
    values. Of each such column the one counts of which surely more is learned, ranks where neither
    is. The features are all columns as in ``ranked``, then the heavy-tailed ones as in ``own``.
    """

    ranked: Columns
    own: Columns

    @classmethod
    def of(cls, inputs: Tensor) -> "InBothUnits":
        """Measures a table. Shapes: (rows, columns)."""
        ranked, own = Columns.of(inputs), Columns.of(inputs, by_rank=False)
        twice = list(ranked.ranks)
        return cls(
            ranked.shape,
            torch.cat([ranked.center, own.center[twice]]),
            torch.cat([ranked.deviation, own.deviation[twice]]),
            torch.cat([ranked.weights, own.weights[twice]]),
            ranked,
            own,
        )

    @property
    def _twice(self) -> list[int]:
        """Lists the columns that are read twice."""
        return list(self.ranked.ranks)

    @property
    def _count(self) -> int:
        return len(self.ranked.weights)

    def apply(self, inputs: Tensor) -> Tensor:
        return torch.cat([self.ranked.apply(inputs), self.own.apply(inputs)[:, self._twice]], 1)

    def undo(self, features: Tensor) -> Tensor:
        return self.ranked.undo(features[:, : self._count])

    def shaped(self, per_feature: Tensor) -> Tensor:
        """Returns a number per column, the greater one of those that are read twice."""
        columns, twice = per_feature[: self._count].clone(), self._twice
        columns[twice] = columns[twice].maximum(per_feature[self._count :])
        return columns.reshape(self.shape)

    def named(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        return (*columns, *(columns[place] for place in self._twice if columns))

    @property
    def notes(self) -> tuple[str, ...]:
        ranked = (BY_RANKS if place in self.ranked.ranks else "" for place in range(self._count))
        return (*ranked, *(BY_VALUES for _ in self._twice))

    def settled(self, share: Tensor, least: Tensor) -> Tensor:
        weights, count, twice = self.weights.clone(), self._count, self._twice
        is_own = least[count:] > share[twice].clamp_min(0.0)
        weights[twice] = weights[twice].where(~is_own, 0.0)
        weights[count:] = weights[count:].where(is_own, 0.0)
        return weights


def _heavy(rows: Tensor, kept: Tensor, varies: Tensor) -> dict[int, Ranks]:
    """Ranks the heavy-tailed columns, but those that ranks make no lighter, as of two values."""
    kurtosis, found = _kurtosis(kept), dict[int, Ranks]()
    for place in (varies & (kurtosis > _HEAVY)).nonzero().flatten().tolist():
        ranks = Ranks.of(rows[:, place])
        lighter = _kurtosis(ranks.apply(rows[:, place]).unsqueeze(1))
        if lighter < _LIGHTER * kurtosis[place]:
            found[place] = ranks
    return found


def _ranked(rows: Tensor, kept: Tensor, ranks: dict[int, Ranks]) -> Tensor:
    """Puts scores into the place of the columns that are ranked."""
    for place, column in ranks.items():  # a loop over columns, not over rows
        kept[:, place] = column.apply(rows[:, place])
    return kept


def _kurtosis(rows: Tensor) -> Tensor:
    """Returns the fourth moment of each column in its own deviations; 0 where it is constant."""
    deviation = _deviation(rows)
    deviation = deviation.where(deviation > 0, 1.0)
    return ((rows - rows.mean(0)) / deviation).pow(4).mean(0)


def _deviation(rows: Tensor) -> Tensor:
    """Returns the deviation of each column, also of numbers whose squares float64 cannot hold."""
    size = rows.abs().amax(0)
    size = size.where(size > 0, 1.0)
    return (rows / size).std(0) * size


def usual(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the ends of each column between which all but a few rows lie."""
    cut = min(math.ceil(_CUT * len(rows)), (len(rows) - 1) // 2)
    low, high = (rows.topk(cut + 1, dim=0, largest=largest).values for largest in (False, True))
    return low[-1], high[-1]
