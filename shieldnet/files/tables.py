"""Tables in .csv and .parquet files: numbers by column, a label, subgroups."""

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shieldnet.core.checks import optional
from shieldnet.core.errors import DataError
from shieldnet.files.sizes import MAX_FILE_BYTES, require_bytes, require_file

TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")
LABELS = ("label", "y", "target", "class")
"""Default names of the label column, in upper or lower case."""

_DELIMITERS = (",", ";", "\t")
_INDEX = ("", "Unnamed: 0", "__index_level_0__")  # pandas' names of row numbers

_BYTES = 8  # of a number in memory
_MAX_HEAD_BYTES = 2**20


def is_table(path: Path) -> bool:
    """Returns whether a file has the extension of a table, in upper or lower case."""
    return path.name.lower().endswith(TABLES)


def renaming(path: Path) -> str:
    """Says what to do with a file of an unknown ending, "" where there is none."""
    if not path.is_file():
        return ""
    return (
        f" If its columns are divided by commas, semicolons or tabs, name it {path.stem}.csv, with "
        "the names of the columns in the first line."
    )


def unlabeled(columns: Sequence[str], source: object) -> str:
    """Says that no column of a table is known to be the label, and how to name it."""
    return (
        f"No column of {source} is called {', '.join(LABELS[:-1])} or {LABELS[-1]}: name the "
        f"label's with --label. It has: {', '.join(columns)}."
    )


def read_table(path: Path, role: str) -> dict[str, NDArray[Any]]:
    """Reads every column of a .csv, .tsv or .parquet file, in the file's order.

    The delimiter of a .csv file is the most frequent of comma, semicolon and tab in its first line.
    Shapes: -> each column (rows,): numbers, booleans, or words.
    Errors: DataError for an invalid table, missing values, a first line without names, row numbers
        among the columns, and too much data.
    """
    table = arrow_table(path, role)
    with understood(path):
        _require_whole(table, path)
        return {
            name: _column(column, f"the column {name} of {path}")
            for name, column in zip(table.column_names, table.columns, strict=True)
        }


def _require_whole(table: Any, path: Path) -> None:
    """Raises DataError for cells that are empty, with the first of every column that has one."""
    empty = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            first = column.is_null().to_pylist().index(True)
            values = (
                "1 missing value"
                if column.null_count == 1
                else (f"{column.null_count} missing values")
            )
            empty.append(f"{values} in {name} (first: row {first})")
    if empty:
        kind = "parquet" if path.suffix.lower() == ".parquet" else "csv"
        raise DataError(
            f"{path} has {', '.join(empty)}; rows count from 0, without the line of names. Drop "
            f"these rows (pandas.read_{kind}({str(path)!r}).dropna().to_{kind}(NEW, index=False)), "
            "fill them in, or audit a pipeline that imputes them itself: MODEL is a function that "
            "returns the pipeline, not its method."
        )


def arrow_table(path: Path, role: str) -> Any:
    """Reads a table with pyarrow and checks its column names; see ``read_table``."""
    size = require_file(path, role)
    require_bytes(size, path, role)
    with understood(path):
        is_parquet = path.suffix.lower() == ".parquet"
        table = _parquet(path, role) if is_parquet else _csv(path, role)
        names = [str(name).strip() for name in table.column_names]
        require_names(names, path)
        if len(set(names)) < len(names):
            raise DataError(f"{path} has two columns with one name: {', '.join(names)}.")
        return table.rename_columns(names)


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Converts exceptions of pyarrow to a DataError about the file."""
    arrow = optional("pyarrow", extra="data")
    try:
        yield
    except (
        *(arrow.ArrowException, zlib.error, EOFError),
        *(OSError, ValueError, OverflowError, MemoryError),
    ) as broken:
        if isinstance(broken, DataError):
            raise
        message = str(broken).split("\n")[0]
        raise DataError(f"{path} is not a readable {path.suffix} table: {message}") from broken


def require_names(names: Sequence[str], path: Path) -> None:
    """Raises DataError for a table without a header line, or with a column of row numbers."""
    if names and all(_is_number(name) for name in names):
        raise DataError(
            f"Expected column names in the first line of {path}, got numbers: "
            f"{', '.join(names[:4])}. Add a header line."
        )
    if index := [name for name in names if name in _INDEX]:
        raise DataError(
            f"{path} has a column named {index[0]!r}, pandas' name of row numbers. Write the table "
            "with index=False, or rename the column if it is an input."
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def divided(
    table: Mapping[str, NDArray[Any]], label: str | None, groups: Sequence[str], path: Path
) -> tuple[NDArray[np.float32], NDArray[Any] | None, tuple[str, ...], dict[str, NDArray[Any]]]:
    """Splits a table into inputs, labels, names of the input columns, and groups.

    label: its column; None for the one in ``LABELS``, if any. A group column of words is not an
    input; one of numbers is.
    Errors: DataError for missing columns, words among the inputs, and an ambiguous label.
    """
    require_columns([*([] if label is None else [label]), *groups], table, path)
    label = label or usual_label(table, groups, path)
    columns = [
        name
        for name in table
        if name != label and not (name in groups and table[name].dtype.kind == "U")
    ]
    worded = [name for name in columns if table[name].dtype.kind == "U"]
    if worded:
        raise DataError(
            f"Expected numbers in {path}, got words in: {', '.join(worded)}. Encode them as "
            "numbers, name them with --label or --group, or audit a pipeline that encodes them "
            "itself: MODEL is a function that returns the pipeline, not its method."
        )
    if not columns:
        raise DataError(f"{path} has no column of inputs.")
    with np.errstate(over="ignore"):  # values beyond float32 become Inf, which is refused later
        # Through float64, as in splitting: a column of integers in one part may have fractions in
        # another.
        wide = [table[name].astype(np.float64) for name in columns]
        inputs = np.stack([column.astype(np.float32) for column in wide], 1)
    labels = None if label is None else table[label]
    return inputs, labels, tuple(columns), {name: table[name] for name in groups}


def require_columns(names: Iterable[str], columns: Iterable[str], path: Path) -> None:
    """Raises DataError for a missing column."""
    there = list(columns)
    for name in names:
        if name not in there:
            close = get_close_matches(name, there, n=1)
            meant = f"Do you mean {close[0]}? " if close else ""
            raise DataError(f"{path} has no column {name}. {meant}It has: {', '.join(there)}.")


def usual_label(columns: Iterable[str], groups: Sequence[str], path: Path) -> str | None:
    """Returns the column with a usual label name, if any; raises DataError for two of them."""
    usual = [name for name in columns if name.lower() in LABELS and name not in groups]
    if len(usual) > 1:
        raise DataError(f"{path} has the columns {' and '.join(usual)}: name one with --label.")
    return usual[0] if usual else None


def csv_text(path: Path, role: str) -> tuple[BytesIO, str]:
    """Reads a .csv file's text, and finds its delimiter."""
    require_bytes(require_file(path, role), path, role)
    text, form = _text(path, role)
    return BytesIO(text), form.delimiter


def parquet_table(path: Path, role: str) -> Any:
    """Reads a .parquet file as pyarrow does."""
    require_bytes(require_file(path, role), path, role)
    return _parquet(path, role)


def csv_as_written(path: Path, role: str) -> tuple[Any, str]:
    """Reads a .csv file's columns as text, unconverted; also returns its delimiter."""
    with understood(path):
        return _csv_of_words(path, role)


def _csv_of_words(path: Path, role: str) -> tuple[Any, str]:
    arrow = optional("pyarrow", extra="data")
    reader = optional("pyarrow.csv", extra="data")
    text, form = _text(path, role)
    names = reader.open_csv(BytesIO(text), parse_options=form).schema.names
    options = reader.ConvertOptions(column_types={name: arrow.string() for name in names})
    return reader.read_csv(
        BytesIO(text), parse_options=form, convert_options=options
    ), form.delimiter


def _csv(path: Path, role: str) -> Any:
    reader = optional("pyarrow.csv", extra="data")
    text, form = _text(path, role)
    return reader.read_csv(
        BytesIO(text), read_options=reader.ReadOptions(use_threads=False), parse_options=form
    )


def _text(path: Path, role: str) -> tuple[bytes, Any]:
    """Reads a .csv file and finds its delimiter."""
    reader = optional("pyarrow.csv", extra="data")
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        text = file.read(MAX_FILE_BYTES + 1)
    require_bytes(len(text), path, role)  # a small archive may decompress to any size
    head = re.sub('"[^"]*"', "", text[:_MAX_HEAD_BYTES].decode("utf-8", "replace"))  # quoted names
    counts = {mark: head.partition("\n")[0].count(mark) for mark in _DELIMITERS}
    mark = max(counts, key=lambda mark: counts[mark])
    return text, reader.ParseOptions(delimiter=mark, newlines_in_values=True)


def _parquet(path: Path, role: str) -> Any:
    file = optional("pyarrow.parquet", extra="data").ParquetFile(path)
    metadata = file.metadata
    groups = (metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    require_bytes(max(metadata.num_rows * metadata.num_columns * _BYTES, *groups, 0), path, role)
    return file.read(use_threads=False)


def is_of_words(column: Any) -> bool:
    """Returns whether a pyarrow column has words."""
    types = optional("pyarrow.types", extra="data")
    kind = column.type
    return bool(types.is_dictionary(kind) or types.is_string(kind) or types.is_large_string(kind))


def as_the_audit_compares(column: Any) -> list[Any]:
    """Returns a pyarrow column's values, which are equal if an audit reads them as equal.

    Numbers are read as float32; missing values are equal to each other.
    """
    types = optional("pyarrow.types", extra="data")
    if types.is_decimal(column.type):
        column = column.cast("float64")
    values: list[Any] = column.to_pylist()
    if not (types.is_integer(column.type) or types.is_floating(column.type)):
        # A part of the column without words may be read as numbers.
        values = [_number_or_word(value) for value in values]
    with np.errstate(over="ignore"):
        return [
            value if value is None or isinstance(value, str) else _compared(value)
            for value in values
        ]


def _compared(value: Any) -> float | None:
    narrow = float(np.float32(np.float64(value)) + np.float32(0))  # -0.0 is 0.0
    return None if narrow != narrow else narrow


def _number_or_word(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, float | int):
        return value
    if not isinstance(value, str):
        return str(value)  # a date or a time, which pandas leaves as text
    try:
        return float(value)
    except ValueError:
        return value.lower() if value.lower() in ("true", "false") else value


def _column(column: Any, name: str) -> NDArray[Any]:
    types = optional("pyarrow.types", extra="data")
    kind = column.type
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        values: NDArray[Any] = np.array(column.to_numpy())
        return values
    if types.is_decimal(kind):
        return np.asarray([float(value) for value in column.to_pylist()])
    if is_of_words(column):
        return np.asarray([str(value) for value in column.to_pylist()])
    raise DataError(f"Expected numbers or words in {name}, got {kind}.")
