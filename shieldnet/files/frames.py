"""Tables read by pandas, for models that take words and missing values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shieldnet.core.errors import DataError
from shieldnet.data.coded_columns import require_pandas
from shieldnet.files.tables import (
    csv_text,
    parquet_table,
    require_columns,
    require_names,
    understood,
    usual_label,
)


class Records(NamedTuple):
    """Holds records as a DataFrame, and their unconverted labels."""

    inputs: Any
    labels: NDArray[Any] | None


def read_records(
    path: Path, role: str, label: str | None, groups: Sequence[str]
) -> tuple[Records, dict[str, NDArray[Any]]]:
    """Reads a table as ``pandas.read_csv`` or ``read_parquet`` does, and separates the label.

    Names, words and missing values are therefore as in the table that a pipeline was fitted on, if
    that was read by pandas. Groups remain inputs. label: its column; None for the one with a usual
    label name, if any.
    Errors: DataError for an invalid table, invalid column names, and missing label or group
        columns; MissingDependency without pandas.
    """
    table = read_frame(path, role)
    names = [str(name) for name in table.columns]
    require_names([name.strip() for name in names], path)
    written = {name.strip(): name for name in names}
    require_columns([*([] if label is None else [label]), *groups], written, path)
    label = label or usual_label(written, groups, path)
    label = None if label is None else written[label]
    values = {name: table[written[name]] for name in groups}
    labels = None if label is None else table.pop(label).to_numpy()
    if not len(table.columns):
        raise DataError(f"{path} has no column of inputs.")
    return Records(table, labels), {name: _group(column) for name, column in values.items()}


def read_frame(path: Path, role: str) -> Any:
    """Reads every column of a table as ``pandas.read_csv`` or ``read_parquet`` does.

    Errors: DataError for an invalid table; MissingDependency without pandas.
    """
    pandas = require_pandas()
    with understood(path):
        if path.suffix.lower() == ".parquet":
            return parquet_table(path, role).to_pandas(ignore_metadata=True)
        text, mark = csv_text(path, role)
        head = pandas.read_csv(text, sep=mark, header=None, nrows=1, dtype=str)
        names = head.iloc[0].fillna("").tolist()
        if len(set(names)) < len(names):
            raise DataError(f"{path} has two columns with one name: {', '.join(names)}.")
        text.seek(0)
        table = pandas.read_csv(text, sep=mark, low_memory=False)
        if not isinstance(table.index, pandas.RangeIndex):  # made of cells without a name
            raise DataError(f"{path} has rows with more cells than its first line has names.")
        return table


def _group(column: Any) -> NDArray[Any]:
    """Returns the values of a group column; missing values form a separate group."""
    if column.dtype.kind in "iufb" and isinstance(column.dtype, np.dtype):
        values: NDArray[Any] = column.to_numpy()
        return values
    return np.asarray([str(cell) for cell in column.astype(object).fillna("missing")])
