"""The records that a model is trained on: checked once, when they come in."""

from collections.abc import Sized
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from shieldnet.core.errors import DataError
from shieldnet.data.examples import as_tensor, pairs_of, require_finite, rows_hash
from shieldnet.training.several_inputs import Packing, packed, several_of


@dataclass(frozen=True)
class Records:
    """Holds inputs and labels of any shape, one of each for a record.

    Shapes: inputs (records, ...), labels (records, ...). batch: of the loader that they came from.
    packing: where a model's several inputs are in a row, None for one input.
    """

    inputs: Tensor
    labels: Tensor
    batch: int | None = None
    packing: Packing | None = None

    def __post_init__(self) -> None:
        for name, tensor in (("inputs", self.inputs), ("labels", self.labels)):
            if tensor.dim() == 0 or len(tensor) == 0:
                raise DataError(f"Expected {name} with a row for every record, got none.")
            require_finite(f"{name}, got NaN or Inf", tensor)
        if len(self.inputs) != len(self.labels):
            raise DataError(
                f"Expected as many labels as inputs, got {len(self.labels)} and {len(self.inputs)}."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, rows: Tensor | slice, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns inputs and labels of some rows, on a device. Shapes: rows (n,) -> (n, ...)."""
        return self.inputs[rows].to(device), self.labels[rows].to(device)

    def of_type(self, dtype: torch.dtype) -> "Records":
        """Returns the records with their real numbers in another type: the model's."""
        columns = (self.inputs, self.labels)
        if all(column.dtype == dtype or not column.is_floating_point() for column in columns):
            return self
        inputs, labels = (
            column.to(dtype) if column.is_floating_point() else column for column in columns
        )
        return Records(inputs, labels, self.batch, self.packing)

    def fingerprint(self) -> str:
        """Returns a hash that names the data without holding any."""
        packing = "" if self.packing is None else repr(self.packing)
        return rows_hash(self.inputs, self.labels) + packing


def as_records(data: object) -> Records:
    """Makes records of (inputs, labels), of a Dataset of such pairs, or of a DataLoader of them.

    Inputs may be several: a dict by the names of a model's arguments, or a tuple in their order.
    Of a DataLoader the dataset is read, and its batch size: which records make a batch is drawn
    anew. A Dataset is read once: what it draws at random is drawn once (use ``Augment``).
    Errors: DataError for a loader whose own way of drawing or joining would be lost.
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
            f"Batches are drawn anew, so that how the loader draws them "
            f"({type(sampler).__name__}) would be lost: its weights are dropped, and the proof "
            "needs independent draws. Pass the dataset; to weigh records, pass a loss that does."
        )
    if loader.collate_fn is not torch.utils.data.default_collate:
        raise DataError(
            "How the loader joins records (collate_fn) would be lost. Pass (inputs, labels) as "
            "tensors with a row for every record."
        )


def _numbers(made: Tensor) -> Tensor:
    """Widens whole numbers; raises DataError for complex ones."""
    if made.is_complex():
        raise DataError("Expected real numbers, got complex ones.")
    is_whole = not made.is_floating_point() and made.dtype != torch.bool
    return made.to(torch.int64) if is_whole else made
