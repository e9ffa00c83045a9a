"""Splits the records of a file into sets, each written in the file's format."""

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
from shieldnet.data.packing import packed
from shieldnet.files.arrays import read_npz
from shieldnet.files.named_arrays import narrow, read_named
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
    """Holds the row indices of each part, and a function that writes rows to a file.

    distinct: how many records of each part differ, as audits count them. unlabeled: the columns of
    a table if none of them is known to be the label.
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
    """Splits the rows of a table or an .npz file, keeping equal inputs together.

    Inputs are equal if an audit reads them as equal, with numbers as float32.
    shares: share of the distinct records for every part. label: label column of a table. groups:
    group columns of a table; those with words are not inputs.
    Errors: DataError for other files, ConfigError for invalid shares.
    """
    if is_table(path):
        return _table(path, shares, label, groups, seed)
    if path.suffix.lower() != ".npz":
        raise DataError(
            f"Expected a table ({', '.join(TABLES)}) or an .npz file to split, got {path}."
            f"{renaming(path)}"
        )
    arrays = read_npz(path, "data", None)
    rows_of = {array.shape[:1] for array in arrays.values()}
    inputs, _, _, _ = read_named(str(path), "data", label, groups)
    each = inputs.values() if isinstance(inputs, dict) else (inputs,)
    is_sound = all(array.dtype.kind in "biuf" for array in each)
    if not isinstance(inputs, dict):
        is_sound = is_sound and inputs.ndim > 1
    if not is_sound or len(rows_of) != 1 or min(rows_of) < (1,):
        raise DataError(
            f"Expected a numeric array x, (rows, ...), in {path}, and others with as many rows."
        )
    narrowed = narrow(inputs)
    if isinstance(narrowed, dict):
        values, _ = packed(narrowed, "data")
    else:
        values = torch.from_numpy(narrowed)
    records = row_bytes_of(values)
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
    """Writes every value as in the original file, quoted only where necessary.

    007 and 1.50 keep their form, and many readers take quoted numbers for text.
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
