"""Inputs and answers as an adversary reads them: units, words, standardized features."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_CUT = 0.005  # of the rows on each side of a column: further out, values count as these
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
    at least), and measured in the deviation that is left. weights: of each column in a sum of
    squared errors: 3 / kurtosis, at most 1, so that a column whose variance lies in few rows counts
    as far as these are many; 0 where nothing varies after the cut. Multiplying a column, or adding
    to it, changes nothing.
    Shapes: low, high and weights (columns,).
    """

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, inputs: Tensor) -> "Columns":
        """Measures a table. Shapes: (rows, columns)."""
        rows = inputs.double()
        low, high = _usual(rows)
        kept = rows.clamp(low, high)
        center, varies = kept.mean(0), high > low
        deviation = kept.std(0).where(varies, 1.0)
        kurtosis = ((kept - center) / deviation).pow(4).mean(0)
        weights = (3 / kurtosis.clamp_min(3.0)).where(varies, 0.0)
        return cls(inputs.shape[1:], center, deviation, weights.float(), low, high)

    def apply(self, inputs: Tensor) -> Tensor:
        kept = inputs.double().clamp(self.low, self.high)
        return ((kept - self.center) / self.deviation).float()

    def undo(self, features: Tensor) -> Tensor:
        return (features * self.deviation + self.center).float()


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
        """Keeps the most frequent words, but for those that stand in every text or in one alone."""
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
        places = torch.searchsorted(self.words, tokens.flatten(1).to(self.words.dtype))
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


def secret_of(inputs: Tensor) -> Scale | Words:
    """Returns the units in which inputs are guessed: words for whole numbers, else features.

    Whole numbers in rows (batch, length) are taken for the tokens of a text.
    """
    whole = not (inputs.is_floating_point() or inputs.dtype in (torch.bool, torch.uint8))
    return Words.of(inputs) if whole and inputs.dim() == 2 else Scale.of(inputs)


def units_of(inputs: Tensor) -> Scale | Words:
    """Returns the units in which guesses are scored: those of ``Columns`` for a table."""
    secret = secret_of(inputs)
    return Columns.of(inputs) if isinstance(secret, Scale) and inputs.dim() == 2 else secret


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
