"""What is given away of each of a model's several inputs, and of the most exposed one."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shieldnet.attacks.adversary.features import Parts
from shieldnet.core.statistics import CONFIDENCE, Interval, saved_shares


@dataclass(frozen=True)
class Errors:
    """Holds squared errors of every feature: of the guess, and of what it is compared with.

    guess: of the decoder, or the label where no decoder is surely better. tried: of the decoders
    everywhere. label, mean: of an adversary who knows the label alone, or nothing.
    Shapes: each (rows, features).
    """

    guess: Tensor
    tried: Tensor
    label: Tensor
    mean: Tensor

    def at(self, features: Tensor) -> "Errors":
        """Keeps some features."""
        kept = (part[:, features] for part in (self.guess, self.tried, self.label, self.mean))
        return Errors(*kept)

    def share(self, seed: int, confidence: float = CONFIDENCE) -> Interval:
        """Returns what all features together give away beyond the label."""
        pair = torch.stack([self.guess.sum(1), self.tried.sum(1)], 1)
        label = self.label.sum(1).repeat(2, 1).T
        share, most = saved_shares(pair, label, seed=seed, confidence=confidence)
        return replace(share, high=max(share.high, most.high))


@dataclass(frozen=True)
class Inputs:
    """Holds the share of every input of which anything varies, by name."""

    shares: tuple[tuple[str, Interval], ...]
    errors: tuple[Errors, ...]

    @classmethod
    def of(cls, secret: Parts, errors: Errors, seed: int) -> "Inputs":
        """Scores each input by itself; the intervals hold for all at once (Bonferroni)."""
        places = torch.arange(len(secret.weights)).split(secret.sizes)
        named = [
            (name, errors.at(own))
            for name, own in zip(secret.packing.shown_names, places, strict=True)
            if secret.weights[own].any()
        ]
        confidence = 1 - (1 - CONFIDENCE) / len(named)
        return cls(
            tuple((name, part.share(seed, confidence)) for name, part in named),
            tuple(part for _, part in named),
        )

    @property
    def worst(self) -> tuple[Interval, Errors]:
        """Returns the share of the most exposed input, and its errors."""
        place = self._worst_place
        return self.shares[place][1], self.errors[place]

    @property
    def note(self) -> str:
        """Names the most exposed input."""
        return f"the worst of {len(self.shares)} inputs: {self.shares[self._worst_place][0]}"

    @property
    def _worst_place(self) -> int:
        return max(range(len(self.shares)), key=lambda place: self.shares[place][1].value)
