"""Inputs and answers as an adversary reads them: units, words, standardized features."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.attacks.adversary.ranks import Ranks
from shieldnet.data.packing import Packing

_CUT = 0.005  # of the rows on each side of a column: further out, values count as these
_HEAVY = 6.0  # kurtosis, as of a Laplace distribution: 3 of a normal one, 9 of an exponential one
_LIGHTER = 0.8  # of its kurtosis, at most, is left to a column that is read by its ranks
_MAX_WORDS = 500


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
    def of(cls, inputs: Tensor) -> "Columns":
        """Measures a table. Shapes: (rows, columns)."""
        rows = inputs.double()
        low, high = _usual(rows)
        varies = high > low
        kept = rows.clamp(low, high)
        ranks = _heavy(rows, kept, varies)
        kept = _ranked(rows, kept, ranks)
        deviation = kept.std(0).where(varies, 1.0)
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
    deviation = rows.std(0)
    deviation = deviation.where(deviation > 0, 1.0)
    return ((rows - rows.mean(0)) / deviation).pow(4).mean(0)


def _usual(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the ends of each column between which all but a few rows lie."""
    cut = min(math.ceil(_CUT * len(rows)), (len(rows) - 1) // 2)
    low, high = (rows.topk(cut + 1, dim=0, largest=largest).values for largest in (False, True))
    return low[-1], high[-1]


@dataclass(frozen=True)
class Words:
    """Reads a text as the words that occur in it: what is secret, whatever their order.

    Shapes: tokens (rows, length) whole numbers; words (words,) the most frequent ones, sorted.
    """

    words: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> "Words":
        """Keeps the most frequent words, without those of every text or of a single one."""
        distinct, counts = tokens.flatten().unique(return_counts=True)
        frequent = distinct[counts.argsort(descending=True, stable=True)[: 4 * _MAX_WORDS]]
        texts_with = cls(frequent.sort().values).apply(tokens).sum(0)
        telling = (texts_with > 1) & (texts_with < len(tokens))
        kept = texts_with.where(telling, -1.0).argsort(descending=True, stable=True)
        kept = kept[: min(_MAX_WORDS, int(telling.sum()))]
        return cls(frequent.sort().values[kept].sort().values)

    def apply(self, tokens: Tensor) -> Tensor:
        """Says which words occur. Shapes: -> (rows, words) float32, 0 or 1."""
        if not len(self.words):
            return torch.zeros(len(tokens), 0)
        flat = tokens.flatten(1).to(self.words.dtype).contiguous()
        places = torch.searchsorted(self.words, flat)
        places = places.clamp_max(len(self.words) - 1)
        known = self.words[places] == tokens.flatten(1)
        marks = torch.zeros(len(tokens), len(self.words))
        return marks.scatter_reduce_(1, places, known.float(), reduce="amax")

    @property
    def weights(self) -> Tensor:
        """Returns the weight of each word: they all count the same."""
        return torch.ones(len(self.words))

    def undo(self, features: Tensor) -> Tensor:
        """Returns what was guessed of each word."""
        return features

    def shaped(self, per_feature: Tensor) -> Tensor:
        """Returns a number per word."""
        return per_feature


@dataclass(frozen=True)
class Parts:
    """Reads each of a model's several inputs in units of its own.

    Shapes: rows (rows, numbers) as they are packed; features are side by side, input by input.
    """

    packing: Packing
    secrets: tuple[Scale | Words, ...]

    @property
    def sizes(self) -> list[int]:
        """Counts the features of each input."""
        return [len(secret.weights) for secret in self.secrets]

    @property
    def are_words(self) -> bool:
        """Returns whether every input is whole numbers in rows, as of tokens and a mask."""
        return all(isinstance(secret, Words) for secret in self.secrets)

    @property
    def are_numbers(self) -> bool:
        """Returns whether no input is read by its words."""
        return all(isinstance(secret, Scale) for secret in self.secrets)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names the features that are columns of a table; those of words and of pixels are ""."""
        names: list[str] = []
        own = zip(self.secrets, self.packing.shapes, self.packing.columns_of_each, strict=True)
        for secret, shape, columns in own:
            is_table = isinstance(secret, Scale) and len(shape) < 2
            names += columns if is_table else [""] * len(secret.weights)
        return tuple(names)

    def apply(self, rows: Tensor) -> Tensor:
        """Returns (rows, features)."""
        parts = zip(self.secrets, rows_of_each(self.packing, rows), strict=True)
        return torch.cat([secret.apply(part) for secret, part in parts], 1)

    @property
    def weights(self) -> Tensor:
        """Returns the weight of each feature, as of its input by itself."""
        return torch.cat([secret.weights for secret in self.secrets])

    @property
    def deviation(self) -> Tensor:
        """Returns the units of all features, where ``are_numbers``."""
        return torch.cat([secret.deviation for secret in self.secrets if isinstance(secret, Scale)])

    def undo(self, features: Tensor) -> Tensor:
        """Returns (rows, features) in the inputs' own units."""
        pairs = zip(self.secrets, features.split(self.sizes, 1), strict=True)
        return torch.cat([secret.undo(part) for secret, part in pairs], 1)

    def shaped(self, per_feature: Tensor) -> Tensor:
        """Returns a number per feature."""
        return per_feature


def secret_of(inputs: Tensor, packing: Packing | None = None) -> Scale | Words | Parts:
    """Returns the units in which inputs are guessed: words for whole numbers, else features.

    Whole numbers in rows (batch, length) are taken for the tokens of a text. packing: of several
    inputs, each of which is read by itself.
    """
    if packing is not None:
        return _each(inputs, packing, _alone)
    return _alone(inputs)


def _alone(inputs: Tensor) -> Scale | Words:
    whole = not (inputs.is_floating_point() or inputs.dtype in (torch.bool, torch.uint8))
    return Words.of(inputs) if whole and inputs.dim() == 2 else Scale.of(inputs)


def units_of(inputs: Tensor, packing: Packing | None = None) -> Scale | Words | Parts:
    """Returns the units in which guesses are scored: those of ``Columns`` for a table."""
    return _scored(inputs) if packing is None else _each(inputs, packing, _scored)


def _scored(inputs: Tensor) -> Scale | Words:
    secret = _alone(inputs)
    return Columns.of(inputs) if isinstance(secret, Scale) and inputs.dim() == 2 else secret


def rows_of_each(packing: Packing, rows: Tensor) -> list[Tensor]:
    """Returns the inputs; a number a record is a column. Shapes: -> each (rows, ...)."""
    return [part if part.dim() > 1 else part.unsqueeze(1) for part in packing.parts(rows)]


def _each(rows: Tensor, packing: Packing, unit: Callable[[Tensor], Scale | Words]) -> Parts:
    """Measures every input by itself, in its own type."""
    pairs = zip(rows_of_each(packing, rows), packing.dtypes, strict=True)
    parts = [part.to(dtype) for part, dtype in pairs]
    return Parts(packing, tuple(unit(part) for part in parts))


def standardize(learned: Tensor, unseen: Tensor) -> tuple[Tensor, Tensor]:
    """Scales both by the mean and deviation of the first, no further out than ten deviations.

    A feature that hardly ever moves would else throw a linear decoder far off where it does, and
    one answer that is far off would hide what all the others say: a few rows on each side count as
    the next of them.
    Shapes: (n, f), (m, f).
    """
    low, high = _usual(learned)
    kept = learned.clamp(low, high)
    varies = kept.std(0) > 1e-6
    center = kept.mean(0).where(varies, learned.mean(0))
    deviation = kept.std(0).where(varies, learned.std(0))
    deviation = deviation.where(deviation > 1e-6, 1.0)
    scaled = (((rows - center) / deviation).clamp(-10, 10).float() for rows in (learned, unseen))
    known, questions = scaled
    return known, questions


def exact_distances(rows: Tensor, others: Tensor) -> Tensor:
    """Returns distances without the rounding of |a|^2 - 2ab + |b|^2, which is faster.

    Shapes: (n, f), (m, f) -> (n, m) float64.
    """
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(rows.double(), others.double(), compute_mode=mode)
