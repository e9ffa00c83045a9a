"""What was asked: how many answers a call wants at most, and its content as bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shieldnet.core.errors import DataError
from shieldnet.data.hashing import content_of


def rows_of(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], *, lists_are_rows: bool = False
) -> int:
    """Counts the rows of a call: those of its longest argument.

    lists_are_rows: counts a list of tensors of three axes as so many images, as detectors take
    them, and no rows within them.
    Errors: DataError if nothing in it has rows.
    """
    if lists_are_rows and len(args) == 1 and not kwargs and _are_images(args[0]):
        return len(args[0])
    lengths = [length for value in (*args, *kwargs.values()) for length in _lengths(value)]
    if not lengths:
        raise DataError(
            "Expected a tensor, array, table or list with a row for each question, got none: what "
            "it costs is not known. Nothing was asked."
        )
    return max(lengths)


def _are_images(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(image, Tensor | np.ndarray) and image.ndim == 3 for image in value
    )


def _lengths(value: Any) -> Iterator[int]:
    if isinstance(value, Tensor | np.ndarray):
        yield len(value) if value.ndim else 1
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _lengths(part)
    elif hasattr(value, "iloc"):
        yield len(value)
    elif isinstance(value, list | tuple):
        yield len(value)
        for part in value:
            if isinstance(part, Tensor | np.ndarray | Mapping):
                yield from _lengths(part)


def content(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    """Returns a hash of what is asked: equal for equal values of equal types alone.

    Errors: DataError for a value that is no tensor, array, table, number, word or container.
    """
    state = blake2b(digest_size=32)
    for part in _parts([list(args), dict(kwargs)]):
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()


def _parts(value: Any) -> Iterator[bytes]:
    if type(value) is np.ndarray and not value.dtype.hasobject:
        yield f"array {value.dtype.descr} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, Tensor):
        yield f"tensor {value.dtype} {value.layout} {tuple(value.shape)}".encode()
        yield from content_of(value)
    elif value is None or isinstance(value, bool | int | float | str | bytes | date | torch.dtype):
        yield f"{type(value).__name__} {value!r}".encode()
    elif isinstance(value, np.generic):
        yield f"{value.dtype.descr} {value!r}".encode()
    elif isinstance(value, Mapping):
        yield f"dict {len(value)}".encode()
        for name, part in value.items():
            yield from _parts(name)
            yield from _parts(part)
    elif isinstance(value, list | tuple):
        yield f"{type(value).__name__} {len(value)}".encode()
        for part in value:
            yield from _parts(part)
    elif hasattr(value, "iloc"):
        yield f"table {type(value).__name__} {value.shape}".encode()
        columns = [value[name] for name in value.columns] if hasattr(value, "columns") else [value]
        for column in columns:
            kinds = getattr(column.dtype, "categories", None)
            yield f"{column.dtype} {None if kinds is None else list(kinds)!r}".encode()
            yield from _parts([column.name, list(column.index), column.tolist()])
    else:
        raise DataError(
            f"Expected tensors, arrays, tables, numbers and words, got {type(value).__name__}: "
            "whether a request repeats another cannot be told. Leave out request_id and "
            "free_repeats."
        )
