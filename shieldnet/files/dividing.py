"""Dividing a file's records into sets, each written as the file was."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shieldnet._validate import optional
from shieldnet.data import coins, row_bytes_of
from shieldnet.errors import DataError
from shieldnet.files.arrays import read_npz
from shieldnet.files.tables import LABELS, arrow_table, is_table


@dataclass(frozen=True)
class Divided:
    """Holds the row numbers of each part, and what writes some rows to a file of this ending."""

    rows: tuple[Tensor, ...]
    write: Callable[[Tensor, Path], None]
    ending: str


def divide(path: Path, shares: Sequence[float], *, label: str | None, seed: int) -> Divided:
    """Divides the rows of a table or an .npz file so that equal inputs stay together.

    shares: of the distinct records, for every part. label: of a table, the column that is no input.
    Errors: DataError for other files, ConfigError for shares.
    """
    if is_table(path):
        return _table(path, shares, label, seed)
    if path.suffix.lower() != ".npz":
        raise DataError(
            f"Expected a table (.csv, .tsv, .parquet) or an .npz to divide, got {path}."
        )
    arrays = read_npz(path, "data", None)
    rows_of = {one.shape[:1] for one in arrays.values()}
    if "x" not in arrays or len(rows_of) != 1 or () in rows_of:
        raise DataError(f"Expected an array x in {path}, and others of as many rows.")
    rows = coins(row_bytes_of(torch.from_numpy(arrays["x"])), shares, seed)

    def write(part: Tensor, target: Path) -> None:
        np.savez(target, **{name: one[part.numpy()] for name, one in arrays.items()})

    return Divided(rows, write, ".npz")


def _table(path: Path, shares: Sequence[float], label: str | None, seed: int) -> Divided:
    table = arrow_table(path, "data")
    if label is not None and label not in table.column_names:
        raise DataError(f"{path} has no column {label}. It has: {', '.join(table.column_names)}.")
    named = [label] if label else [one for one in table.column_names if one.lower() in LABELS]
    inputs = table.drop_columns(named if len(named) == 1 else [])
    records = list(zip(*(column.to_pylist() for column in inputs.columns), strict=True))
    rows = coins(records, shares, seed)
    is_parquet = path.suffix.lower() == ".parquet"

    def write(part: Tensor, target: Path) -> None:
        kept: Any = table.take(part.numpy())
        if is_parquet:
            optional("pyarrow.parquet", extra="data").write_table(kept, target)
        else:
            optional("pyarrow.csv", extra="data").write_csv(kept, target)

    return Divided(rows, write, ".parquet" if is_parquet else ".csv")
