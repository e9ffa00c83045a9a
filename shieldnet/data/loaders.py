"""Records of a torch DataLoader: each once, whichever batch it would be in."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from shieldnet.core.errors import DataError
from shieldnet.data.tensors import as_tensor


def of_loader(data: object, name: str) -> Any:
    """Returns the records of a DataLoader as data; what is none stays as it is.

    Of a plain loader the dataset is read, or the part that a ``SubsetRandomSampler`` draws from.
    Where its ``collate_fn`` is the user's own, or its dataset has no length, records are read once,
    in their order and one by one, so that no record is mixed into the row of another.
    Errors: DataError for one that draws records more than once or by weights.
    """
    if not isinstance(data, DataLoader):
        return data
    is_stream = isinstance(data.dataset, IterableDataset)
    if is_stream and data.batch_size is None:  # its own batches
        return _joined(list(data), name)
    dataset = data.dataset if is_stream else _chosen(data, name)
    is_batched = data.batch_size is not None or data.batch_sampler is not None
    if not is_stream and (data.collate_fn is default_collate or not is_batched):
        return dataset
    return _joined(list(DataLoader(dataset, 1, collate_fn=data.collate_fn)), name)


def batch_size_of(loader: "DataLoader[Any]") -> int | None:
    """Returns the batch size of a loader, also of its ``batch_sampler``; None without batches."""
    of_batches = getattr(loader.batch_sampler, "batch_size", None)
    return loader.batch_size or (of_batches if isinstance(of_batches, int) else None)


def _chosen(loader: "DataLoader[Any]", name: str) -> "Dataset[Any]":
    sampler = loader.sampler
    if type(loader.batch_sampler) is BatchSampler:  # one of the user's hides its sampler
        sampler = loader.batch_sampler.sampler
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(loader.dataset, list(sampler.indices))
    is_each_once = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]  # it has a length
    )
    own_batches = type(loader.batch_sampler) not in (BatchSampler, type(None))
    if not is_each_once or own_batches:
        drawing = type(loader.batch_sampler if own_batches else sampler).__name__
        raise DataError(
            f"Expected a DataLoader of the {name} that draws every record once, got one that "
            f"draws by {drawing}. Pass loader.dataset, or the part of it that is meant: "
            "torch.utils.data.Subset(loader.dataset, rows)."
        )
    return loader.dataset


def _joined(batches: list[Any], name: str) -> Any:
    """Joins batches of one form: tensors, tuples or dicts of them."""
    if not batches:
        raise DataError(f"Expected at least one row of {name}, got none.")
    first = batches[0]
    if isinstance(first, Mapping):
        return {key: _joined([batch[key] for batch in batches], name) for key in first}
    if isinstance(first, tuple | list) and not isinstance(first[0], int | float):
        if len({len(batch) for batch in batches}) > 1:
            raise _unstacked(name)
        return tuple(_joined(list(column), name) for column in zip(*batches, strict=True))
    tensors = [as_tensor(batch, name) for batch in batches]
    if any(tensor.dim() == 0 for tensor in tensors):
        raise _unstacked(name)
    shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
    if len(shapes) > 1:
        raise DataError(
            f"Expected batches of the {name} with records of one shape, got {sorted(shapes)[:3]}: "
            "pad them to one length, tokenizer(texts, padding='max_length', max_length=...)."
        )
    joined: Tensor = torch.cat(tensors)
    return joined


def _unstacked(name: str) -> DataError:
    return DataError(
        f"Expected batches of the {name}, got single records. Give the DataLoader a batch_size, "
        "and a collate_fn that stacks them: lambda rows: (torch.stack([x for x, _ in rows]), "
        "torch.tensor([y for _, y in rows]))."
    )
