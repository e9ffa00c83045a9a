"""Micro-batches: large batches in pieces, and their answers merged again."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shieldnet.core.errors import AnswerError
from shieldnet.outputs.nested import is_list_of_dicts, leaves, replaced, written


def arrays(values: Iterable[Any]) -> Iterator[Any]:
    """Lists the tensors and arrays with rows in the arguments."""
    for value in values:
        if isinstance(value, Tensor | np.ndarray) and value.ndim > 0:
            yield value


def pieces(
    args: tuple[Any, ...], kwargs: dict[str, Any], size: int
) -> tuple[list[tuple[tuple[Any, ...], dict[str, Any]]], list[int]]:
    """Splits the arguments of a call into pieces of ``size`` rows; others go to every piece.

    Returns the pieces, and the number of rows of each.
    """
    values = (*args, *kwargs.values())
    first = next((value for value in values if _has_rows(value)), None)
    if first is None:
        raise AnswerError(
            "Expected a tensor, array or table with rows to split by micro_batch, got none."
        )
    rows = len(first)

    def piece(value: Any, start: int) -> Any:
        if not (_has_rows(value) and len(value) == rows):
            return value
        return (value.iloc if hasattr(value, "iloc") else value)[start : start + size]

    starts = range(0, max(rows, 1), size)
    cut = [
        (
            tuple(piece(value, start) for value in args),
            {name: piece(value, start) for name, value in kwargs.items()},
        )
        for start in starts
    ]
    return cut, [min(size, rows - start) for start in starts]


def _has_rows(value: Any) -> bool:
    """Returns whether a value has a row per example: a tensor, array, table or list of images."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(image, Tensor | np.ndarray) for image in value)
    return hasattr(value, "iloc") or (isinstance(value, Tensor | np.ndarray) and value.ndim > 0)


def merged(outputs: Sequence[Any], rows: Sequence[int]) -> Any:
    """Concatenates the outputs of parts of a batch.

    Lists of dicts, as of a detector, are joined image by image.
    Errors: AnswerError if the parts have different fields, or a field has other rows.
    """
    if all(map(is_list_of_dicts, outputs)):
        return [image for output in outputs for image in output]
    parts = [dict(leaves(output)) for output in outputs]
    for fields, count in zip(parts, rows, strict=True):
        for path, leaf in fields.items():
            if not (isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == count):
                raise AnswerError(
                    f"Expected {written(path)} to have one row for each of the {count} rows of a "
                    "micro-batch, to join micro-batches. Omit it with drop=(...)."
                )
        if fields.keys() != parts[0].keys():
            raise AnswerError("Expected the same fields in every micro-batch, got different ones.")
    return replaced(outputs[0], lambda path, leaf: torch.cat([output[path] for output in parts]))
