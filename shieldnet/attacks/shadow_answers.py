"""What shadow models answer: models that an adversary trains to learn what membership does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from shieldnet.data.examples import Examples


@dataclass(frozen=True)
class Shadows:
    """Holds the true scores of every shadow model, and which records trained it.

    scores: by the name of a set of examples, (shadows, rows, classes). trained_on: by the same
    names, (shadows, rows) bool. places: by the same names, (rows,): which rows of the set were
    asked about. perturbed: by the same names, (shadows, copies, rows, classes): scores of copies
    of the first rows with a little noise. how: how the shadows were trained, in words. weaker:
    whether they are models of another kind than the target. guided: how many, the last ones, were
    trained on records drawn by what the target answered; no other shadow is judged by these.
    """

    scores: Mapping[str, Tensor]
    trained_on: Mapping[str, Tensor]
    places: Mapping[str, Tensor]
    perturbed: Mapping[str, Tensor]
    how: str
    weaker: bool
    guided: int = 0

    @property
    def count(self) -> int:
        """Counts the shadows."""
        return len(next(iter(self.scores.values())))

    @property
    def independent(self) -> "Shadows":
        """Returns those whose records were drawn whatever the target answers."""
        return self._part(slice(0, self.count - self.guided), guided=0)

    def _part(self, chosen: slice, guided: int) -> "Shadows":
        return replace(
            self,
            scores={name: values[chosen] for name, values in self.scores.items()},
            trained_on={name: drawn[chosen] for name, drawn in self.trained_on.items()},
            perturbed={name: values[chosen] for name, values in self.perturbed.items()},
            guided=guided,
        )

    def followed_by(self, others: "Shadows", how: str) -> "Shadows":
        """Returns these and others that were guided by them."""
        return replace(
            self,
            scores=_joined(self.scores, others.scores),
            trained_on=_joined(self.trained_on, others.trained_on),
            perturbed=_joined(self.perturbed, others.perturbed),
            how=how,
            guided=self.guided + others.count,
        )


def _joined(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([values, second[name]]) for name, values in first.items()}


def drawn(
    sets: Sequence[Examples], shadows: int, rates: Sequence[Tensor | float], seed: Sequence[int]
) -> list[Tensor]:
    """Draws for every record and shadow whether the record trains the shadow.

    rates: for each set the chance of its records, or one for all of them.

    Independent Bernoulli draws, not exact halves: where every record is in exactly half of the
    shadows, leaving one out betrays the others, and discrete answers look safer than chance.

    Shapes: -> for each set (shadows, rows) bool.
    """
    rng = np.random.default_rng(seed)
    return [
        torch.from_numpy(rng.random((shadows, len(examples)))) < rate
        for examples, rate in zip(sets, rates, strict=True)
    ]


def share_of_members(members: int, nonmembers: int) -> float:
    """Returns the chance with which a record trains a shadow: shadows of the target's own size.

    Never below a quarter nor above three: both kinds of shadows are needed for every record.
    """
    return min(0.75, max(0.25, members / (members + nonmembers)))


@dataclass(frozen=True)
class PositionShadows:
    """Holds what shadows of a model that answers at positions say, behind every shield.

    sums: by the digest of a shield's settings, then by the name of a set, (shadows, rows, 4):
    over a record's positions, the sum of log p of the true classes where it was released, at how
    many it was not, the sum of capped log p, and at how many the winner was right; of a map four
    more, over its boundaries alone. trained_on, how: as in ``Shadows``.
    """

    sums: Mapping[str, Mapping[str, Tensor]]
    trained_on: Mapping[str, Tensor]
    how: str

    @property
    def count(self) -> int:
        """Counts the shadows."""
        return len(next(iter(self.trained_on.values())))
