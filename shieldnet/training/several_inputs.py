"""Models of several inputs: a record's inputs in one tensor, and a model that takes them apart.

Private training traces a graph of one record's inputs and label. With ``input_ids`` and
``attention_mask`` in one row, all of a record is in that row, and nothing else is.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shieldnet.core.errors import ConfigError, DataError
from shieldnet.data.examples import STACKED, as_tensor
from shieldnet.training.countermeasures.base import Countermeasure

LABELS = ("labels", "label")
"""What a dict of a record's inputs may call its label."""


@dataclass(frozen=True)
class Packing:
    """Says which input of a model is where in a row.

    names: of keyword inputs; empty for positional ones. shapes: of each, without records. dtypes:
    as they came.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    def unpacked(self, rows: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Returns a model's arguments. Shapes: (records, numbers) -> each (records, ...)."""
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]
        parts = []
        for part, shape, dtype in zip(rows.split(sizes, 1), self.shapes, self.dtypes, strict=True):
            whole = part.reshape(len(rows), *shape)
            parts.append(whole if dtype.is_floating_point else whole.to(dtype))
        return (
            (tuple(parts), {})
            if not self.names
            else ((), dict(zip(self.names, parts, strict=True)))
        )

    @property
    def described(self) -> str:
        """Writes names and shapes."""
        names = self.names or tuple(map(str, range(len(self.shapes))))
        return ", ".join(map("{} {}".format, names, self.shapes))

    def taking_one(self, model: nn.Module) -> nn.Module:
        """Returns a copy of a model that takes rows in place of its inputs, under its own names."""
        copied = copy.deepcopy(model)
        copied.__dict__["forward"] = _Unpacking(self, copied)
        return copied


def taking_several(model: nn.Module) -> None:
    """Has a copy that ``Packing.taking_one`` made take its own inputs again; no other changes."""
    unpacking = model.__dict__.get("forward")
    if isinstance(unpacking, _Unpacking):
        del model.__dict__["forward"]
        if unpacking.is_attribute:
            model.__dict__["forward"] = unpacking.forward


def require_whole_inputs(countermeasures: Sequence[Countermeasure]) -> None:
    """Raises ConfigError for countermeasures that would change several inputs as one."""
    for measure in countermeasures:
        if not measure.keeps_inputs:
            raise ConfigError(
                f"{type(measure).__name__} changes or reads inputs that are one tensor, and these "
                "records have several. Leave it out, or train a model that takes one stacked "
                f"tensor. {STACKED}"
            )


def packed(columns: Mapping[str, Any] | tuple[Any, ...], name: str) -> tuple[Tensor, Packing]:
    """Puts several inputs into one tensor. Shapes: each (records, ...) -> (records, numbers).

    Errors: DataError for inputs of several lengths, and of whole and real numbers together.
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
    real = [tensor.is_floating_point() for tensor in tensors]
    if any(tensor.is_complex() for tensor in tensors) or any(real) != all(real):
        raise DataError(
            f"Expected several inputs of the {name} to be all whole numbers (words, masks) or all "
            f"real ones, got {listed}: in one type, some would lose digits. Have the model take "
            f"one tensor that holds both. {STACKED}"
        )
    packing = Packing(
        names,
        tuple(tuple(tensor.shape[1:]) for tensor in tensors),
        tuple(tensor.dtype for tensor in tensors),
    )
    flat = [tensor.reshape(len(tensor), -1) for tensor in tensors]
    rows = torch.cat(flat if all(real) else [part.to(torch.int64) for part in flat], 1)
    return rows, packing


def several_of(data: object) -> tuple[Any, Any] | None:
    """Finds several inputs and labels in data; None where there are none.

    ({"input_ids": ..., "attention_mask": ...}, labels), ((first, second), labels), a dict with
    labels in it, or a Dataset whose rows are such.
    """
    if isinstance(data, Mapping):
        return _with_labels(data)
    if isinstance(data, tuple | list) and len(data) == 2 and _is_column(data[1]):
        inputs = data[0]
        is_many = isinstance(inputs, Mapping) or (
            isinstance(inputs, tuple) and inputs and all(map(_is_column, inputs))
        )
        return (inputs, data[1]) if is_many else None
    if isinstance(data, tuple | list) or not hasattr(data, "__getitem__"):
        return None
    return _of_dataset(data)


def _of_dataset(data: Any) -> tuple[Any, Any] | None:
    if not hasattr(data, "__len__") or not len(data):
        return None
    first = data[0]
    is_pair = isinstance(first, tuple | list) and len(first) == 2
    if not isinstance(first, Mapping) and not (is_pair and isinstance(first[0], Mapping | tuple)):
        return None
    rows = [data[index] for index in range(len(data))]
    if isinstance(first, Mapping):
        rows = [_with_labels(row) for row in rows]
    try:
        labels = torch.stack([as_tensor(label, "records") for _, label in rows])
        if isinstance(rows[0][0], Mapping):
            names = list(rows[0][0])
            return {key: _stacked([row[key] for row, _ in rows], key) for key in names}, labels
        return tuple(
            _stacked(list(column), "an input") for column in zip(*[r for r, _ in rows], strict=True)
        ), labels
    except (KeyError, ValueError) as uneven:
        raise DataError(
            f"Expected every record to have the same inputs, got others: {uneven}."
        ) from uneven


def _stacked(values: list[Any], key: str) -> Tensor:
    tensors = [as_tensor(value, "records") for value in values]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise DataError(
            f"Expected {key} of one shape for every record, got {sorted(shapes)[:3]}: pad them, "
            "tokenizer(texts, padding='max_length', max_length=...)."
        )
    return torch.stack(tensors)


def _with_labels(record: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    label = next((key for key in LABELS if key in record), None)
    if label is None:
        raise DataError(
            f"Expected labels beside {', '.join(map(str, record))}: give (inputs, labels), such as "
            "({'input_ids': ..., 'attention_mask': ...}, labels), or a dict with 'labels'."
        )
    return {key: value for key, value in record.items() if key != label}, record[label]


def _is_column(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0


class _Unpacking:
    """Stands in place of a model's forward."""

    def __init__(self, packing: Packing, model: nn.Module) -> None:
        self.packing, self.forward = packing, model.forward
        self.is_attribute = "forward" in model.__dict__  # as of a model that accelerate moves

    def __call__(self, rows: Tensor) -> Any:
        args, kwargs = self.packing.unpacked(rows)
        return self.forward(*args, **kwargs)
