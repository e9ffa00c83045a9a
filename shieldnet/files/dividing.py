"""Dividing a file's records into sets, each written as the file was."""

import csv
import gzip
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shieldnet.core.checks import optional
from shieldnet.core.errors import DataError
from shieldnet.data.examples import drawn_parts, row_bytes_of
from shieldnet.files.arrays import read_npz
from shieldnet.files.tables import (
    TABLES,
    arrow_table,
    as_the_audit_compares,
    csv_as_written,
    is_of_words,
    is_table,
    renaming,
    require_columns,
    usual_label,
)


@dataclass(frozen=True)
class Divided:
    """Holds the row numbers of each part, and what writes some rows to a file of this ending.

    distinct: how many records of each part differ, as audits count them. unlabeled: the columns of
    a table of which none is known to be the label.
    """

    rows: tuple[Tensor, ...]
    distinct: tuple[int, ...]
    write: Callable[[Tensor, Path], None]
    ending: str
    unlabeled: tuple[str, ...] = ()


def divide(
    path: Path,
    shares: Sequence[float],
    *,
    label: str | None,
    groups: Sequence[str] = (),
    seed: int,
) -> Divided:
    """Divides the rows of a table or an .npz file so that equal inputs stay together.

    Inputs are equal where an audit reads them as equal: numbers as float32.
    shares: of the distinct records, for every part. label: of a table, the column that is no input;
    groups: of a table, columns whose words are no inputs either.
    Errors: DataError for other files, ConfigError for shares.
    """
    if is_table(path):
        return _table(path, shares, label, groups, seed)
    if path.suffix.lower() != ".npz":
        raise DataError(
            f"Expected a table ({', '.join(TABLES)}) or an .npz to divide, got {path}."
            f"{renaming(path)}"
        )
    arrays = read_npz(path, "data", None)
    rows_of = {array.shape[:1] for array in arrays.values()}
    is_sound = "x" in arrays and arrays["x"].ndim > 1 and arrays["x"].dtype.kind in "biuf"
    if not is_sound or len(rows_of) != 1 or min(rows_of) < (1,):
        raise DataError(
            f"Expected an array x of numbers, (rows, ...), in {path}, and others of as many rows."
        )
    inputs = arrays["x"]
    is_wide = inputs.dtype.kind == "f" and inputs.dtype.itemsize > 4
    narrow = inputs.astype(np.float32) if is_wide else inputs
    records = row_bytes_of(torch.from_numpy(narrow))
    rows = drawn_parts(records, shares, seed)

    def write(indices: Tensor, target: Path) -> None:
        np.savez(target, **{name: array[indices.numpy()] for name, array in arrays.items()})

    return Divided(rows, _distinct(records, rows), write, ".npz")


def _distinct(records: Sequence[Hashable], parts: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(len({records[row] for row in part.tolist()}) for part in parts)


def _table(
    path: Path, shares: Sequence[float], label: str | None, groups: Sequence[str], seed: int
) -> Divided:
    table = arrow_table(path, "data")
    require_columns([*([label] if label else []), *groups], table.column_names, path)
    label = label or usual_label(table.column_names, groups, path)
    columns = dict(zip(table.column_names, table.columns, strict=True))
    compared = (
        as_the_audit_compares(column)
        for name, column in columns.items()
        if name != label and not (name in groups and is_of_words(column))
    )
    records = list(zip(*compared, strict=True))
    rows = drawn_parts(records, shares, seed)
    ending = next(suffix for suffix in TABLES if path.name.lower().endswith(suffix))
    write = _parquet_writer(table) if ending == ".parquet" else _csv_writer(path)
    unlabeled = () if label else tuple(table.column_names)
    return Divided(rows, _distinct(records, rows), write, ending, unlabeled)


def _parquet_writer(table: Any) -> Callable[[Tensor, Path], None]:
    def write(indices: Tensor, target: Path) -> None:
        optional("pyarrow.parquet", extra="data").write_table(table.take(indices.numpy()), target)

    return write


def _csv_writer(path: Path) -> Callable[[Tensor, Path], None]:
    """Writes every value as it was written, in quotes where it needs them.

    007 and 1.50 are what somebody meant, and numbers in quotes are words to many readers.
    """
    table, delimiter = csv_as_written(path, "data")

    def write(indices: Tensor, target: Path) -> None:
        columns = [column.to_pylist() for column in table.take(indices.numpy()).columns]
        is_packed = target.suffix.lower() == ".gz"
        opened = gzip.open if is_packed else open
        with opened(target, "wt", newline="", encoding="utf-8") as file:
            lines = csv.writer(file, delimiter=delimiter, lineterminator="\n")
            lines.writerow(table.column_names)
            lines.writerows(zip(*columns, strict=True))

    return write
