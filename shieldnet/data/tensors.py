"""Numbers of any container as a tensor."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shieldnet.core.errors import DataError

TEXTS = (
    "texts. Tokenize them as the model reads them: tokenizer(texts, padding='max_length', "
    "max_length=..., truncation=True, return_tensors='pt')"
)
"""What is said of texts where numbers are expected."""


def as_tensor(value: object, name: str) -> Tensor:
    """Returns numbers as a tensor without a graph, or raises DataError."""
    try:
        # A table's own index is no part of it.
        numbers = value.to_numpy(copy=True) if hasattr(value, "iloc") else value  # type: ignore[attr-defined]  # pandas'
        if isinstance(numbers, np.ndarray) and not numbers.flags.writeable:
            numbers = numbers.copy()  # or torch warns; columns of pandas are so
        return torch.as_tensor(numbers).detach()
    except (TypeError, ValueError, RuntimeError) as unreadable:
        require_even(value, name)
        if are_words(value):
            raise DataError(f"Expected numbers for the {name}, got {TEXTS}") from unreadable
        raise DataError(
            f"Expected numbers for the {name}, got {_described(value)}."
        ) from unreadable


def stacked(values: Sequence[object], what: str) -> Tensor:
    """Stacks one value for every record; raises DataError for values of several shapes."""
    tensors = [as_tensor(value, "records") for value in values]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise DataError(
            f"Expected {what} of one shape for every record, got {sorted(shapes)[:3]}: pad them, "
            "tokenizer(texts, padding='max_length', max_length=...). Rows are expected: if these "
            "are batches, join them first by torch.cat."
        )
    return torch.stack(tensors)


def are_words(value: object) -> bool:
    """Returns whether the rows are texts, also one level down, as of a dict of them."""
    rows = next(iter(value.values()), None) if isinstance(value, dict) else value
    first = rows[0] if isinstance(rows, list | tuple) and rows else rows
    return isinstance(first, str)


def require_even(value: object, name: str) -> None:
    """Raises DataError for a list of sequences of several lengths, as of texts without padding."""
    if not isinstance(value, list | tuple):
        return
    lengths = {len(row) for row in value if hasattr(row, "__len__") and not _is_scalar(row)}
    if len(lengths) > 1:
        raise DataError(
            f"Expected the {name} as sequences of one length, got lengths from {min(lengths)} to "
            f"{max(lengths)}. Pad all sets to one length, tokenizer(texts, padding='max_length', "
            "max_length=..., truncation=True, return_tensors='pt'), and pass the attention_mask "
            "among the inputs, or audit(..., padding=tokenizer.pad_token_id)."
        )


def _is_scalar(row: object) -> bool:
    return isinstance(row, str) or getattr(row, "ndim", 1) == 0


def _described(value: object) -> str:
    """Names the columns of a table that are no numbers, and the way that works."""
    kinds = getattr(value, "dtypes", None)
    if not hasattr(kinds, "items"):
        return type(value).__name__
    others = [str(column) for column, kind in kinds.items() if kind.kind not in "iuf"]  # type: ignore[union-attr]  # pandas'
    return (
        f"a table with words, or with what is no plain number, in: {', '.join(others)}. A network "
        "reads numbers: encode these columns; or audit a pipeline that encodes them itself, "
        "sn.harden(pipeline)"
    )
