"""Columns of records that the model does not read, kept beside those that it does."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Beside:
    """Holds sensitive columns that the model does not read, as codes by set.

    columns: the names of the codes. codes: by the name of the set.
    Shapes: codes (rows, columns), of every set.
    """

    columns: tuple[str, ...]
    codes: Mapping[str, Tensor]

    def at(self, rows: Mapping[str, Tensor]) -> "Beside":
        """Returns the codes of these rows of each set, in their order."""
        return Beside(self.columns, {name: self.codes[name][kept] for name, kept in rows.items()})

    def _fingerprinted(self) -> tuple[object, ...]:
        return self.columns, tuple(sorted(self.codes.items()))
