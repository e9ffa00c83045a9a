"""Ids that an embedding has no row for: how they are recognized, and what an error says of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from shieldnet.core.errors import DataError
from shieldnet.training.records import Records

_SIGNS = ("out of range", "out of bounds", "not in the valid range")  # of torch
_MAX_NAMED = 4


def is_beyond(failed: Exception) -> bool:
    """Returns whether torch found an index that a table does not have."""
    return isinstance(failed, IndexError) or any(sign in str(failed) for sign in _SIGNS)


def ids_beyond(model: nn.Module, records: Records) -> str:
    """Says which whole numbers of records an embedding may have no row for, "" for none.

    A model whose embeddings are not torch's has sizes that are not known.
    """
    sizes = {
        name: layer.num_embeddings
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag)
    }
    ranges = {name: (int(ids.min()), int(ids.max())) for name, ids in _whole(records)}
    ranges = {
        name: (low, high)
        for name, (low, high) in ranges.items()
        if low < 0 or high >= min(sizes.values(), default=0)
    }
    if not ranges:
        return ""
    told = [f"{name} from {low} to {high}" for name, (low, high) in ranges.items()][:_MAX_NAMED]
    rows = [f"{name or 'the model'} has {size} rows" for name, size in sizes.items()][:_MAX_NAMED]
    return (
        "An id may be at or above the number of rows of an nn.Embedding, or below 0: the data has "
        + "; ".join([", ".join(told), ", ".join(rows)] if rows else told)
    )


FIX = (
    "Take an embedding with more rows than the largest id, or number the ids from 0: "
    "names, ids = numpy.unique(values, return_inverse=True)"
)


@contextmanager
def naming_ids(model: nn.Module, records: Records) -> Iterator[None]:
    """Raises DataError in place of torch's error about an id that an embedding has no row for."""
    try:
        yield
    except (IndexError, RuntimeError) as failed:
        beyond = ids_beyond(model, records) if is_beyond(failed) else ""
        if not beyond:
            raise
        raise DataError(f"{beyond}. {FIX}.") from failed


def _whole(records: Records) -> Iterator[tuple[str, Tensor]]:
    """Yields the inputs that are whole numbers, by name."""
    packing = records.packing
    if packing is None:
        named = [("ids", records.inputs, records.inputs.dtype)]
    else:
        parts = packing.parts(records.inputs)
        named = list(zip(packing.shown_names, parts, packing.dtypes, strict=True))
    for name, numbers, dtype in named:
        if not dtype.is_floating_point and numbers.numel():
            yield name, numbers
