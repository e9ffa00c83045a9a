"""Training records, validated once on input."""

from collections.abc import Sized
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from shieldnet.core.errors import DataError
from shieldnet.data.examples import pairs_of, require_finite, rows_hash
from shieldnet.data.packing import Packing, packed, several_of
from shieldnet.data.tensors import as_tensor


@dataclass(frozen=True)
class Records:
    """Holds the inputs and labels of training records.

    Shapes: inputs (records, ...), labels (records, ...). batch: batch size of their loader, if any.
    packing: positions of a model's several inputs in a row, None for one input.
    """

    inputs: Tensor
    labels: Tensor
    batch: int | None = None
    packing: Packing | None = None

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

    def of_type(self, dtype: torch.dtype) -> "Records":
        """Returns the records with floating-point numbers in another dtype."""
        columns = (self.inputs, self.labels)
        if all(column.dtype == dtype or not column.is_floating_point() for column in columns):
            return self
        inputs, labels = (
            column.to(dtype) if column.is_floating_point() else column for column in columns
        )
        return Records(inputs, labels, self.batch, self.packing)

    def fingerprint(self) -> str:
        """Returns a hash of the data."""
        packing = "" if self.packing is None else repr(self.packing)
        return rows_hash(self.inputs, self.labels) + packing


def as_records(data: object) -> Records:
    """Reads records from (inputs, labels), a Dataset of such pairs, or a DataLoader.

    Several inputs are a dict by argument name, or a tuple in the order of the arguments. From a
    DataLoader only the dataset and the batch size are used; batches are drawn anew. A Dataset is
    read once, so random transforms are applied once (use ``Augment``).
    Errors: DataError for a loader whose sampler or collate_fn would be ignored.
    """
    if isinstance(data, Records):
        return data
    if isinstance(data, DataLoader):
        _require_plain(data)
        records = as_records(data.dataset)
        return replace(records, batch=data.batch_size)
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
    return Records(_numbers(inputs), _as_labels(labels))


def _as_labels(labels: Tensor) -> Tensor:
    return labels.long() if labels.dtype == torch.bool else _numbers(labels)


def _require_plain(loader: DataLoader) -> None:  # type: ignore[type-arg]  # of anything
    sampler = loader.sampler
    is_plain = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]  # it has a length
    )
    if not is_plain or loader.batch_size is None:
        raise DataError(
            f"Batches are drawn anew, so the loader's {type(sampler).__name__} would be ignored: "
            "its weights would be lost, and the proof needs independent draws. Pass the dataset; "
            "to weight records, pass a loss that does."
        )
    if loader.collate_fn is not torch.utils.data.default_collate:
        raise DataError(
            "The loader's collate_fn would be ignored. Pass (inputs, labels) as tensors with a row "
            "per record."
        )


def _numbers(made: Tensor) -> Tensor:
    """Widens integers; raises DataError for complex numbers."""
    if made.is_complex():
        raise DataError(f"Expected real numbers, got {made.dtype}.")
    is_whole = not made.is_floating_point() and made.dtype != torch.bool
    return made.to(torch.int64) if is_whole else made
