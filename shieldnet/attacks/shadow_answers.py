"""What shadow models answer: models that an adversary trains to learn what membership does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    whether they are models of another kind than the target.
    """

    scores: Mapping[str, Tensor]
    trained_on: Mapping[str, Tensor]
    places: Mapping[str, Tensor]
    perturbed: Mapping[str, Tensor]
    how: str
    weaker: bool

    @property
    def count(self) -> int:
        """Counts the shadows."""
        return len(next(iter(self.scores.values())))


def drawn(sets: Sequence[Examples], shadows: int, rate: float, seed: int) -> list[Tensor]:
    """Draws for every record and shadow whether the record trains the shadow.

    Independent Bernoulli draws, not exact halves: where every record is in exactly half of the
    shadows, leaving one out betrays the others, and discrete answers look safer than chance.

    Shapes: -> for each set (shadows, rows) bool.
    """
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.random((shadows, len(examples))) < rate) for examples in sets]


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
