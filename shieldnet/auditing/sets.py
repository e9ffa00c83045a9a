"""The sets of an audit: of one form, disjoint, in a random order; groups beside them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shieldnet.core.checks import choice
from shieldnet.core.errors import ConfigError, DataError
from shieldnet.data.duplicates import near_duplicates
from shieldnet.data.examples import (
    Examples,
    Group,
    as_examples,
    require_disjoint,
    require_one_shape,
    row_bytes,
)

_MAX_VALUES = 20  # of a grouping: more are no groups
_ROLES = ("members", "nonmembers")
_PAIRS = (("members", "nonmembers"), ("auxiliary", "nonmembers"), ("auxiliary", "members"))


@dataclass(frozen=True)
class Sets:
    """Holds the sets of an audit by name. rows: where each row stood in the set that was given.

    counts: how many rows were given of each.
    """

    examples: Mapping[str, Examples]
    rows: Mapping[str, Tensor]
    counts: Mapping[str, int]

    @classmethod
    def of(
        cls,
        members: object,
        nonmembers: object,
        auxiliary: object,
        duplicates: str,
        unread: Sequence[str] = (),
        *,
        targets: bool = False,
    ) -> "Sets":
        """Checks the sets. duplicates: ``"drop"`` removes records that are in two sets from both.

        unread: names of columns that the model does not read, which are left out of the sets.
        targets: whether labels are the targets of a regression.
        Errors: DataError where sets are missing, unlike, or overlap.
        """
        choice("duplicates", duplicates, ("refuse", "drop"))
        given = {"members": members, "nonmembers": nonmembers, "auxiliary": auxiliary}
        for name in _ROLES:
            if given[name] is None:
                raise DataError(f"Expected {name} as (inputs, labels), got None.")
        examples = {
            name: as_examples(value, name, targets=targets)
            for name, value in given.items()
            if value is not None
        }
        counts = {name: len(rows) for name, rows in examples.items()}
        rows = {name: torch.arange(count) for name, count in counts.items()}
        pairs = [pair for pair in _PAIRS if pair[0] in examples]
        if duplicates == "drop":
            rows = _in_one_set(examples, pairs)
            examples = {name: part.shuffled(rows[name]) for name, part in examples.items()}
        for first, second in pairs:
            require_disjoint(examples[first], examples[second], unread)
            if duplicates == "refuse":
                _require_no_near_copies(examples[first], examples[second])
        return cls(examples, rows, counts)

    def as_read_by(self, model: nn.Module) -> "Sets":
        """Returns fractions in the float type of the model's weights, as ``finetune`` does."""
        return replace(self, examples=as_the_model_reads(self.examples, model))

    def shuffled(self, seed: int) -> "Sets":
        """Puts every set into a random order.

        Attacks that cannot afford all rows take the first: of data sorted by class, or by anything
        else, these would be of one kind, and a leak or a safety would be seen that is none.
        """
        generator = torch.Generator().manual_seed(seed)
        orders = {
            name: torch.randperm(len(part), generator=generator)
            for name, part in self.examples.items()
        }
        return replace(
            self,
            examples={name: part.shuffled(orders[name]) for name, part in self.examples.items()},
            rows={name: rows[orders[name]] for name, rows in self.rows.items()},
        )

    def groups(self, given: Mapping[str, tuple[object, object]] | None) -> tuple[Group, ...]:
        """Makes a group of every value of every grouping, of the rows that are in the sets."""
        pairs = {name: self._values(name, pair) for name, pair in (given or {}).items()}
        return tuple(
            Group(f"{name} = {_written(value)}", *(_equal(values, value) for values in pair))
            for name, pair in pairs.items()
            for value in _every_value(name, pair)
        )

    def _values(self, name: str, pair: object) -> list[NDArray[Any]]:
        """Returns what a grouping says of the members and of the nonmembers."""
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise ConfigError(
                f"Expected groups as {{name: (of the members, of the nonmembers)}}, got {name!r}: "
                f"{type(pair).__name__}."
            )
        values = [np.asarray(part) for part in pair]
        for part, role in zip(values, _ROLES, strict=True):
            if part.shape != (self.counts[role],):
                raise DataError(
                    f"Expected the group {name} of the {role} as {self.counts[role]} values, got "
                    f"shape {part.shape}."
                )
        return [part[self.rows[role].numpy()] for part, role in zip(values, _ROLES, strict=True)]

    @property
    def dropped(self) -> tuple[str, ...]:
        """Says in a line what was taken out of the sets."""
        lost = {name: count - len(self.rows[name]) for name, count in self.counts.items()}
        parts = [
            f"{count} of the {self.counts[name]} {name}" for name, count in lost.items() if count
        ]
        why = "they occur in another set too, exactly or nearly, and were dropped"
        return (f"{', '.join(parts)}: {why}",) if parts else ()


def as_the_model_reads(sets: Mapping[str, Examples], model: nn.Module) -> dict[str, Examples]:
    """Returns sets of fractions in the float type of the model's weights, as ``finetune`` does."""
    kinds = [weight.dtype for weight in model.parameters() if weight.is_floating_point()]
    own = getattr(model, "dtype", None) if not kinds else kinds[0]  # of an ONNX model, its input's
    if not (isinstance(own, torch.dtype) and own.is_floating_point):
        return dict(sets)
    return {
        name: replace(part, inputs=part.inputs.to(own))
        if part.inputs.is_floating_point() and part.packing is None  # of which each has its own
        else part
        for name, part in sets.items()
    }


def column_names(columns: Sequence[str], inputs: Tensor) -> tuple[str, ...]:
    """Returns a name for every column of a table, none for anything else."""
    if inputs.dim() != 2:
        if columns:
            shape = tuple(inputs.shape)
            raise ConfigError(f"Only a table has columns; the inputs have shape {shape}.")
        return ()
    width = inputs.shape[1]
    if columns and len(columns) != width:
        raise ConfigError(f"Expected {width} column names, got {len(columns)}.")
    return tuple(columns) or tuple(f"column {number}" for number in range(width))


def _require_no_near_copies(first: Examples, second: Examples) -> None:
    near = near_duplicates(first.inputs, second.inputs)
    if len(near):
        example = f"row {int(near[0, 1])} is nearly row {int(near[0, 0])}"
        raise DataError(
            f"{len(near)} of the {len(second)} {second.name} are nearly {first.name} (first: "
            f"{example}): a cast, a copy or a rounding is all that tells them apart. What is "
            "measured between overlapping sets means nothing. Take them out of both with "
            "duplicates='drop', or divide the data anew with "
            "shieldnet.split."
        )


def _in_one_set(
    sets: Mapping[str, Examples], pairs: Sequence[tuple[str, str]]
) -> dict[str, Tensor]:
    """Lists the rows of every set that are in no other set, not even nearly."""
    for first, second in pairs:
        require_one_shape(sets[first], sets[second])
    content = {name: row_bytes(part) for name, part in sets.items()}
    times = Counter(row for rows in content.values() for row in set(rows))
    alone = {
        name: torch.tensor([times[row] == 1 for row in rows]) for name, rows in content.items()
    }
    for first, second in pairs:
        near = near_duplicates(sets[first].inputs, sets[second].inputs)
        alone[first][near[:, 0]] = False
        alone[second][near[:, 1]] = False
    for name, rows in alone.items():
        if not rows.any():
            raise DataError(f"Every one of the {len(rows)} {name} stands in another set too.")
    return {name: rows.nonzero().flatten() for name, rows in alone.items()}


def _every_value(name: str, pair: Sequence[NDArray[Any]]) -> list[Any]:
    try:
        values = np.unique(np.concatenate(pair))
    except TypeError as mixed:
        raise DataError(
            f"Expected the group {name} as values of one kind, none of them missing: {mixed}."
        ) from mixed
    if len(values) > _MAX_VALUES:
        raise DataError(
            f"Expected at most {_MAX_VALUES} values of the group {name}, got {len(values)}."
        )
    every: list[Any] = values.tolist()
    return every


def _written(value: object) -> str:
    return "missing" if value != value else str(value)


def _equal(values: NDArray[Any], value: object) -> Tensor:
    """Says which values are this one; what is missing (NaN) equals what is missing, too."""
    same = values != values if value != value else values == value
    return torch.from_numpy(np.asarray(same))
