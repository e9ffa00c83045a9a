"""Inputs and answers as an adversary reads them: units, words, standardized features."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.attacks.adversary.scales import Columns, InBothUnits, Scale, usual
from shieldnet.data.packing import Packing

_MAX_WORDS = 500


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

    @property
    def notes(self) -> tuple[str, ...]:
        """Says nothing of any word."""
        return ("",) * len(self.words)

    def settled(self, share: Tensor, least: Tensor) -> Tensor:
        """Returns the weight of each word, whatever is learned."""
        return self.weights


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
            if isinstance(secret, Scale) and len(shape) < 2:
                names += secret.named(tuple(columns))
            else:
                names += [""] * len(secret.weights)
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
        """Returns a number per word, column and pixel."""
        pairs = zip(self.secrets, per_feature.split(self.sizes), strict=True)
        return torch.cat([secret.shaped(part).flatten() for secret, part in pairs])

    @property
    def notes(self) -> tuple[str, ...]:
        """Says of every feature in which units it is scored, where these are unusual."""
        return tuple(note for secret in self.secrets for note in secret.notes)

    def settled(self, share: Tensor, least: Tensor) -> Tensor:
        """Returns the weight of each feature, as of its input by itself."""
        parts = zip(self.secrets, share.split(self.sizes), least.split(self.sizes), strict=True)
        return torch.cat([secret.settled(*given) for secret, *given in parts])


Tables = Columns | InBothUnits


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


def units_of(
    inputs: Tensor, packing: Packing | None = None, table: type[Tables] = Columns
) -> Scale | Words | Parts:
    """Returns the units in which guesses are scored. table: those of a table."""

    def scored(part: Tensor) -> Scale | Words:
        secret = _alone(part)
        return table.of(part) if isinstance(secret, Scale) and part.dim() == 2 else secret

    return scored(inputs) if packing is None else _each(inputs, packing, scored)


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
    low, high = usual(learned)
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
