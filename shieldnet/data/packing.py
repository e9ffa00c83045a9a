"""Several inputs of a model in one tensor: what stands where in a row.

A model of ``input_ids`` and ``attention_mask``, or of an image and a table, is asked by its own
inputs. Attacks, and the proof of private training, see a row of numbers for each record.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shieldnet.core.errors import DataError
from shieldnet.data.tensors import as_tensor, stacked

LABELS = ("labels", "label")
"""What a dict of a record's inputs may call its label."""
STACKED = (
    "Such a model is class Stacked(torch.nn.Module), whose forward(self, rows) returns "
    "self.model(input_ids=rows[:, 0], attention_mask=rows[:, 1]), for "
    "rows = torch.stack([input_ids, attention_mask], 1)."
)
"""What to do where one tensor of inputs is needed; tests run its lines."""
_EXACT = 2**53
"""Up to here every whole number is a number of float64."""


@dataclass(frozen=True)
class Packing:
    """Says which input of a model is where in a row.

    names: of keyword inputs; empty for positional ones. shapes: of each, without records. dtypes:
    as they came.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @property
    def sizes(self) -> list[int]:
        """Counts the numbers that each input takes in a row."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def shown_names(self) -> tuple[str, ...]:
        """Names the inputs, positional ones by their place."""
        return self.names or tuple(f"input {place}" for place in range(len(self.shapes)))

    @property
    def is_mixed(self) -> bool:
        """Returns whether whole numbers stand beside real ones."""
        return len({dtype.is_floating_point for dtype in self.dtypes}) > 1

    @property
    def is_whole(self) -> list[bool]:
        """Says of every number of a row whether it is whole."""
        pairs = zip(self.dtypes, self.sizes, strict=True)
        return [not dtype.is_floating_point for dtype, size in pairs for _ in range(size)]

    def of_type(self, dtype: torch.dtype) -> "Packing":
        """Returns the packing with real inputs in another type."""
        return replace(
            self, dtypes=tuple(dtype if own.is_floating_point else own for own in self.dtypes)
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Names every number of a row: ``age``, ``input_ids[3]``, ``image[0, 5, 7]``."""
        return tuple(name for columns in self.columns_of_each for name in columns)

    @property
    def columns_of_each(self) -> list[list[str]]:
        """Names every number of each input."""
        return [
            [f"{name}{list(place) if place else ''}" for place in product(*map(range, shape))]
            for name, shape in zip(self.shown_names, self.shapes, strict=True)
        ]

    @property
    def described(self) -> str:
        """Writes names and shapes."""
        names = self.names or tuple(map(str, range(len(self.shapes))))
        return ", ".join(map("{} {}".format, names, self.shapes))

    @property
    def described_with_dtypes(self) -> str:
        """Writes names, dtypes and shapes."""
        triples = zip(self.shown_names, self.dtypes, self.shapes, strict=True)
        return ", ".join(map("{} {} {}".format, *zip(*triples, strict=True)))

    def parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Returns the inputs in the rows' own type.

        Shapes: (records, numbers) -> each (records, ...).
        """
        parts = zip(rows.split(self.sizes, 1), self.shapes, strict=True)
        return tuple(part.reshape(len(rows), *shape) for part, shape in parts)

    def arguments(self, parts: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Returns inputs as a model takes them: positional and named ones."""
        if not self.names:
            return tuple(parts), {}
        return (), dict(zip(self.names, parts, strict=True))

    def unpacked(self, rows: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Returns a model's arguments.

        Real numbers stay in the type of the rows, which may be the model's own; of mixed rows,
        which are float64, they get theirs.
        Shapes: (records, numbers) -> each (records, ...).
        """
        if self.is_mixed:
            return self.arguments(self._typed(rows))
        pairs = zip(self.parts(rows), self.dtypes, strict=True)
        return self.arguments(
            [part if dtype.is_floating_point else part.to(dtype) for part, dtype in pairs]
        )

    def inputs(self, rows: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...]:
        """Returns the inputs as they came: a dict or a tuple, each in its own type.

        Shapes: (records, numbers) -> each (records, ...).
        """
        args, kwargs = self.arguments(self._typed(rows))
        return kwargs or args

    def _typed(self, rows: Tensor) -> list[Tensor]:
        return [part.to(dtype) for part, dtype in zip(self.parts(rows), self.dtypes, strict=True)]


def packed(columns: Mapping[str, Any] | tuple[Any, ...], name: str) -> tuple[Tensor, Packing]:
    """Puts several inputs into one tensor. Shapes: each (records, ...) -> (records, numbers).

    Whole and real numbers together are float64, where no digit is lost.
    Errors: DataError for inputs of several lengths, and for numbers that would lose digits.
    """
    names = tuple(columns) if isinstance(columns, Mapping) else ()
    if not all(isinstance(key, str) for key in names):
        raise DataError(
            f"Expected the inputs of the {name} by the names of arguments, got {names}."
        )
    values = columns.values() if isinstance(columns, Mapping) else columns
    tensors = [as_tensor(value, name) for value in values]
    if not tensors or any(tensor.dim() == 0 for tensor in tensors):
        raise DataError(f"Expected inputs of the {name} with a row for every record, got none.")
    shown = names or range(len(tensors))
    listed = ", ".join(
        f"{key}: {tensor.dtype} {tuple(tensor.shape)}"
        for key, tensor in zip(shown, tensors, strict=True)
    )
    if len({len(tensor) for tensor in tensors}) > 1:
        raise DataError(f"Expected a row of every input for every record, got {listed}.")
    if any(tensor.is_complex() for tensor in tensors):
        raise DataError(
            f"Expected whole or real inputs of the {name}, got {listed}. Give the real and "
            "imaginary parts as two inputs: torch.view_as_real(values)."
        )
    packing = Packing(
        names,
        tuple(tuple(tensor.shape[1:]) for tensor in tensors),
        tuple(tensor.dtype for tensor in tensors),
    )
    return _joined(tensors, listed), packing


def _joined(tensors: Sequence[Tensor], listed: str) -> Tensor:
    """Puts inputs side by side in a type that holds every digit of all."""
    flat = [tensor.reshape(len(tensor), math.prod(tensor.shape[1:])) for tensor in tensors]
    real = [tensor.is_floating_point() for tensor in tensors]
    if all(real):
        return torch.cat(flat, 1)
    if not any(real):
        return torch.cat([part.to(torch.int64) for part in flat], 1)
    for part, is_real in zip(flat, real, strict=True):
        if not is_real and part.numel() and int(part.to(torch.int64).abs().max()) > _EXACT:
            raise DataError(
                f"Expected whole numbers beside real ones up to 2**53, got {listed} with more: "
                "some digits would be lost. Number what they stand for from 0: names, numbers = "
                "numpy.unique(values, return_inverse=True)."
            )
    return torch.cat([part.to(torch.float64) for part in flat], 1)


def several_of(data: object, *, needs_labels: bool = True) -> tuple[Any, Any] | None:
    """Finds several inputs and labels in data; None where there are none.

    ({"input_ids": ..., "attention_mask": ...}, labels), ((first, second), labels), a dict with
    labels in it, or a Dataset whose rows are such. needs_labels: or else labels may be None.
    """
    if isinstance(data, Mapping):
        return _with_labels(data, needs_labels)
    if isinstance(data, tuple | list) and len(data) == 2 and _are_labels(data[1]):
        inputs = data[0]
        is_many = isinstance(inputs, Mapping) or (
            isinstance(inputs, tuple) and inputs and all(map(_is_column, inputs))
        )
        return (inputs, data[1]) if is_many else None
    if isinstance(data, tuple) or not hasattr(data, "__getitem__"):
        return None
    return _of_dataset(data, needs_labels)


def _of_dataset(data: Any, needs_labels: bool) -> tuple[Any, Any] | None:
    if not _has_rows(data):
        return None
    first = data[0]
    is_pair = isinstance(first, tuple | list) and len(first) == 2
    if not isinstance(first, Mapping) and not (is_pair and isinstance(first[0], Mapping | tuple)):
        return None
    rows = [data[index] for index in range(len(data))]
    if isinstance(first, Mapping):
        rows = [_with_labels(row, needs_labels) for row in rows]
    try:
        labels = None
        if rows[0][1] is not None:
            labels = stacked([label for _, label in rows], "labels")
        if isinstance(rows[0][0], Mapping):
            names = list(rows[0][0])
            return {key: stacked([row[key] for row, _ in rows], key) for key in names}, labels
        return tuple(
            stacked(list(column), "an input") for column in zip(*[r for r, _ in rows], strict=True)
        ), labels
    except (KeyError, ValueError) as uneven:
        raise DataError(
            f"Expected every record to have the same inputs, got others: {str(uneven).rstrip('.')}."
        ) from uneven


def _has_rows(data: Any) -> bool:
    is_table = isinstance(data, Tensor | np.ndarray | str) or hasattr(data, "iloc")
    return not is_table and hasattr(data, "__len__") and len(data) > 0


def _with_labels(record: Mapping[str, Any], needs_labels: bool) -> tuple[dict[str, Any], Any]:
    label = next((key for key in LABELS if key in record), None)
    if label is None and needs_labels:
        raise DataError(
            f"Expected labels beside {', '.join(map(str, record))}: give (inputs, labels), such as "
            "({'input_ids': ..., 'attention_mask': ...}, labels), or a dict with 'labels'."
        )
    inputs = {key: value for key, value in record.items() if key != label}
    return inputs, None if label is None else record[label]


def _is_column(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0


def _are_labels(value: object) -> bool:
    """Returns whether it may be the labels of all records."""
    return _is_column(value) or isinstance(value, list | range) or hasattr(value, "iloc")
