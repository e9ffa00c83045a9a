"""Training records, validated once on input."""

from collections.abc import Sized
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from shieldnet.core.errors import DataError
from shieldnet.data.examples import pairs_of, require_finite, rows_hash
from shieldnet.data.loaders import batch_size_of, of_loader
from shieldnet.data.packing import Packing, packed, several_of
from shieldnet.data.tensors import as_tensor


@dataclass(frozen=True)
class Records:
    """Holds the inputs and labels of training records.

    Shapes: inputs (records, ...), labels (records, ...). batch: batch size of their loader, if any.
    packing: positions of a model's several inputs in a row, None for one input. dtype: of one input
    as it was given, if another.
    """

    inputs: Tensor
    labels: Tensor
    batch: int | None = None
    packing: Packing | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name, tensor in (("inputs", self.inputs), ("labels", self.labels)):
            if tensor.dim() == 0 or len(tensor) == 0:
                raise DataError(f"Expected {name} with a row per record, got none.")
            require_finite(f"{name}, got NaN or Inf", tensor)
        if len(self.inputs) != len(self.labels):
            raise DataError(
                f"Expected as many labels as inputs, got {len(self.labels)} and {len(self.inputs)}."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, rows: Tensor | slice, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns the inputs and labels of rows on a device. Shapes: rows (n,) -> (n, ...)."""
        return self.inputs[rows].to(device), self.labels[rows].to(device)

    @property
    def given(self) -> torch.dtype:
        """Returns the dtype that one input was given in."""
        return self.dtype or self.inputs.dtype

    @property
    def is_whole(self) -> Tensor:
        """Says of every number of a record's inputs whether it is whole.

        Shapes: -> (), or (numbers,) where whole and real ones are in one row.
        """
        if self.packing is not None and self.packing.is_mixed:
            return torch.tensor(self.packing.is_whole, device=self.inputs.device)
        return torch.tensor(not self.inputs.is_floating_point(), device=self.inputs.device)

    def of_type(self, dtype: torch.dtype) -> "Records":
        """Returns the records with floating-point numbers in another dtype.

        Rows that hold whole numbers too stay float64; the model gets its inputs in the dtype.
        """
        packing = self.packing and self.packing.of_type(dtype)
        is_mixed = packing is not None and packing.is_mixed
        inputs, labels = self.inputs, self.labels
        if inputs.is_floating_point() and not is_mixed:
            inputs = inputs.to(dtype)
        if labels.is_floating_point():
            labels = labels.to(dtype)
        return Records(inputs, labels, self.batch, packing, self.dtype)

    def fingerprint(self) -> str:
        """Returns a hash of the data."""
        packing = "" if self.packing is None else repr(self.packing)
        return rows_hash(self.inputs, self.labels) + packing


def as_records(data: object) -> Records:
    """Reads records from (inputs, labels), a Dataset of such pairs, or a DataLoader.

    Several inputs are a dict by argument name, or a tuple in the order of the arguments. From a
    DataLoader the records are read once, with its collate_fn, and its batch size is kept; batches
    are drawn anew. Random transforms are applied once (use ``Augment``).
    Errors: DataError for a loader that draws records more than once or by weights.
    """
    if isinstance(data, Records):
        return data
    if isinstance(data, DataLoader):
        return replace(as_records(of_loader(data, "records")), batch=batch_size_of(data))
    if (several := several_of(data)) is not None:
        inputs, packing = packed(several[0], "records")
        return Records(inputs, _as_labels(as_tensor(several[1], "records")), packing=packing)
    if (
        isinstance(data, tuple | list)
        and len(data) == 2
        and not any(isinstance(column, tuple) for column in data)
    ):
        inputs, labels = (as_tensor(column, "records") for column in data)
    elif isinstance(data, Sized) and hasattr(data, "__getitem__"):
        inputs, labels = pairs_of(data, "records")
    else:
        raise DataError(
            f"Expected (inputs, labels), a Dataset with a length or a DataLoader, got "
            f"{type(data).__name__}."
        )
    return Records(_numbers(inputs), _as_labels(labels), dtype=inputs.dtype)


def _as_labels(labels: Tensor) -> Tensor:
    return labels.long() if labels.dtype == torch.bool else _numbers(labels)


def _numbers(made: Tensor) -> Tensor:
    """Widens integers; raises DataError for complex numbers."""
    if made.is_complex():
        raise DataError(f"Expected real numbers, got {made.dtype}.")
    is_whole = not made.is_floating_point() and made.dtype != torch.bool
    return made.to(torch.int64) if is_whole else made
