"""A column that somebody may want to learn, and what it may be."""

from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from shieldnet.attacks.base import Game
from shieldnet.core.errors import DataError
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable

MAX_ROWS = 2000  # of each set: every row is asked about once for every value
_MAX_VALUES = 20


@dataclass(frozen=True)
class Secret:
    """A sensitive column, or a one-hot group of columns, and what it may be.

    name: the column's, or what the names of the group begin with.
    Shapes: candidates (count, columns) what the adversary asks with; values (count,) int64 which
    value of the secret each stands for. cut: the secret is whether the column lies above it.
    """

    name: str
    places: tuple[int, ...]
    candidates: Tensor
    values: Tensor
    cut: float | None = None

    @classmethod
    def of(cls, game: Game, name: str) -> "Secret":
        """Reads the values of a column off the auxiliary data.

        Errors: DataError for a name that is no column's; NotApplicable for one value only.
        """
        places = places_of(game.columns, name)
        known = game.owned().inputs[:, list(places)]
        distinct = known.unique(dim=0)
        if len(distinct) < 2:
            raise NotApplicable("it has one value only in the auxiliary data")
        if len(places) > 1:
            require_one_hot(name, known)
        else:
            require_alone(game, name)
        if len(distinct) <= _MAX_VALUES:
            return cls(name, places, distinct, torch.arange(len(distinct)))
        if len(places) > 1:
            raise NotApplicable(f"it has {len(distinct)} values, more than {_MAX_VALUES}")
        cut = float(known.double().median())
        ladder = known.double().quantile(torch.arange(0.05, 1, 0.1, dtype=torch.float64))
        steps = ladder.unique().unsqueeze(1).to(known.dtype)
        values = (steps.squeeze(1) > cut).long()
        if len(values.unique()) < 2:
            raise NotApplicable("it hardly varies in the auxiliary data")
        return cls(name, places, steps, values, cut)

    @property
    def count(self) -> int:
        """Counts the values that the secret can have."""
        return int(self.values.max()) + 1

    def truth(self, inputs: Tensor) -> Tensor:
        """Returns which value each row has, -1 for one that was never seen. Shapes: -> (rows,)."""
        own = inputs[:, list(self.places)]
        if self.cut is not None:
            return (own.squeeze(1) > self.cut).long()
        same = (own.unsqueeze(1) == self.candidates).all(-1)
        return torch.where(same.any(1), same.long().argmax(1), -1)

    def others(self, inputs: Tensor) -> Tensor:
        """Returns the other columns. Shapes: -> (rows, columns that are left)."""
        kept = [column for column in range(inputs.shape[1]) if column not in self.places]
        return inputs[:, kept].float()

    def tried(self, examples: Examples) -> Examples:
        """Puts every candidate into every row. Shapes: inputs -> (rows * candidates, columns)."""
        rows = examples.inputs[:MAX_ROWS].repeat_interleave(len(self.candidates), 0)
        rows[:, list(self.places)] = self.candidates.repeat(len(rows) // len(self.candidates), 1)
        return Examples(f"{examples.name} with every {self.name}", rows)

    def by_value(self, scores: Tensor) -> Tensor:
        """Keeps the best candidate of each value.

        Shapes: (rows * candidates, features) -> (rows, values, features).
        """
        rows = scores.reshape(-1, len(self.candidates), scores.shape[-1])
        return torch.stack(
            [rows[:, self.values == value].amax(1) for value in range(self.count)], 1
        )


def places_of(columns: tuple[str, ...], name: str) -> tuple[int, ...]:
    """Returns the columns of a name: its own, or those of a one-hot group that begin with it.

    A group is education=HS, education=PhD, or education_HS, education_PhD: at least two columns of
    the second form, and none that is itself a word of another column (personal_status=single).
    Errors: DataError, with the columns, where there are none.
    """
    if name in columns:
        return (columns.index(name),)
    words, flags = (
        tuple(place for place, column in enumerate(columns) if column.startswith(f"{name}{mark}"))
        for mark in ("=", "_")  # of education=PhD and education_num the first is the group
    )
    if words:
        return words
    if len(flags) > 1 and not any("=" in columns[place] for place in flags):
        return flags
    own = list(dict.fromkeys(column.partition("=")[0] for column in columns))
    near = [other for other in own if other.startswith(f"{name}_")]
    near = near or get_close_matches(name, own, n=1)
    meant = f" Do you mean {near[0]}?" if near else ""
    raise DataError(
        f"There is no column {name}.{meant} The columns are: "
        f"{', '.join(own) or 'not named; pass columns=(...)'}."
    )


def is_one_hot(known: Tensor) -> bool:
    """Returns whether one column of every row is high and the others are low."""
    high, low = known.amax(0), known.amin(0)
    is_either = bool(((known == high) | (known == low)).all())
    return is_either and bool(((known == high).sum(1) == 1).all())


def require_one_hot(name: str, known: Tensor) -> None:
    """Raises NotApplicable unless one column of every row is high and the others are low."""
    if not is_one_hot(known):
        raise NotApplicable(
            f"needs exactly one of the {known.shape[1]} columns of {name} set in every row, and "
            "others are; name single columns instead"
        )


def require_alone(game: Game, name: str) -> None:
    """Raises NotApplicable for one column of a one-hot group: the others tell it already."""
    for mark in ("=", "_"):
        stem = name.rpartition(mark)[0]
        group = [
            place
            for place, column in enumerate(game.columns)
            if stem and column.rpartition(mark)[0] == stem
        ]
        if len(group) > 1 and is_one_hot(game.owned().inputs[:, group]):
            raise NotApplicable(f"the other columns of {stem} tell it: name the group, {stem}")
