"""What membership attacks read of answers, and what they make of it."""

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Signals: TypeAlias = dict[str, Tensor]
"""What answers say of records, by name; of shadows, with an axis of shadows before the rows'."""
Population: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Of other records: p by the target, p by the shadows, and which shadows they trained."""


@dataclass(frozen=True)
class Scored:
    """Holds one attack's scores of members and nonmembers.

    places: which rows of the two sets were scored. queries: answers about each; shadows: models
    compared with.
    Shapes: members (m,), nonmembers (n,) float64; places (m,) and (n,).
    """

    members: Tensor
    nonmembers: Tensor
    places: tuple[Tensor, Tensor]
    queries: int
    shadows: int = 0

    @property
    def rows(self) -> int:
        """Counts the rows of the smaller set."""
        return min(len(self.members), len(self.nonmembers))
