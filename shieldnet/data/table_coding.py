"""Coding of tables with words, numbers and missing values as numbers, and decoding."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shieldnet.core.checks import unwarned
from shieldnet.core.errors import DataError
from shieldnet.data.coded_columns import Column, Numbers, Words, require_pandas


@dataclass(frozen=True, eq=False)
class TableCoding:
    """Encodes tables as float64 codes that attacks can change, and decodes them.

    A column of numbers or booleans has one code, the value itself, and a second code,
    ``age=missing``, if values are missing. A column of words or categories is one-hot coded, with a
    code per word such as ``education=Bachelors``; missing values count as a word.

    Guarantee: ``decode(encode(table))`` is the table, in the types that fit all sets. Codes that no
    table has are decoded to the nearest: the word with the largest code, the nearest integer that
    occurs in some set, and fractions clipped to the range of the sets.
    """

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, tables: Mapping[str, Any], wanted: Sequence[str] | None = None) -> "TableCoding":
        """Determines the kinds and values of columns from all tables of an audit.

        tables: DataFrames by role, for messages. wanted: the columns, in order; by default those of
        the first table.
        Errors: DataError for columns that are missing, of two kinds, or neither numbers nor words.
        """
        labels = [_labels_of(table, role) for role, table in tables.items()]
        if wanted is None:
            wanted = list(labels[0])
            _require_same(tables, labels)
        for role, there in zip(tables, labels, strict=True):
            if missing := [name for name in wanted if name not in there]:
                raise DataError(
                    f"The {role} lack columns that the model needs: {', '.join(missing)}. They "
                    f"have: {', '.join(there)}."
                )
        parts = {
            name: {
                role: table[there[name]]
                for (role, table), there in zip(tables.items(), labels, strict=True)
            }
            for name in wanted
        }
        columns = tuple(_column(name, labels[0][name], part) for name, part in parts.items())
        if not columns:
            raise DataError("Expected tables with columns, got none.")
        names = Counter(name for column in columns for name in column.names)
        if twice := [name for name, count in names.items() if count > 1]:
            raise DataError(f"Two columns or words would both be named {twice[0]}: rename one.")
        return cls(columns)

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the name of each code."""
        return tuple(name for column in self.columns for name in column.names)

    def encode(self, table: Any) -> Tensor:
        """Shapes: a DataFrame with these columns, in any order -> (rows, codes) float64."""
        there = _labels_of(table, "table")
        parts = [column.encode(table[there[column.name]]) for column in self.columns]
        return torch.from_numpy(np.concatenate(parts, 1))

    def decode(self, codes: Tensor) -> Any:
        """Shapes: (rows, codes) -> a DataFrame with these columns, in their order and types."""
        pandas = require_pandas()
        numbers = codes.detach().cpu().to(torch.float64).numpy()
        ends = np.cumsum([len(column.names) for column in self.columns])[:-1]
        parts = zip(self.columns, np.split(numbers, ends, 1), strict=True)
        series = {column.label: pandas.Series(column.decode(part)) for column, part in parts}
        return pandas.DataFrame(series)

    def _fingerprinted(self) -> tuple[Any, ...]:
        return tuple(column.content for column in self.columns)


def as_table(value: Any, names: Sequence[str] | None = None) -> Any:
    """Returns a table of any library, or an array of rows, as a DataFrame.

    names: column names of an array. Errors: DataError for anything else.
    """
    if hasattr(value, "iloc"):
        if value.ndim != 2:
            raise DataError(
                "Expected a table, got a single column; texts cannot be audited. A table with one "
                "column is frame[[name]]."
            )
        return value
    pandas = require_pandas()
    if hasattr(value, "to_pandas"):  # of polars and pyarrow
        return value.to_pandas()
    rows = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if rows.ndim != 2 or (names is not None and len(names) != rows.shape[1]):
        wanted = "" if names is None else f" of {len(names)} columns"
        raise DataError(f"Expected a table{wanted}, got an array of shape {rows.shape}.")
    columns = list(names or (f"column {number}" for number in range(rows.shape[1])))
    table = pandas.DataFrame(rows, columns=columns)
    return table.infer_objects() if rows.dtype == object else table


def is_plain(table: Any) -> bool:
    """Returns whether a DataFrame has only numbers and no missing values."""
    kinds = {kind.kind if isinstance(kind, np.dtype) else "" for kind in table.dtypes}
    return (kinds <= set("iuf") or kinds == {"b"}) and not table.isna().any(axis=None)


def _labels_of(table: Any, role: str) -> dict[str, Any]:
    """Returns column labels by name; raises DataError for two columns with one name."""
    names = [str(label) for label in table.columns]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f"The {role} have two columns named {twice}: rename one.")
    return dict(zip(names, table.columns, strict=True))


def _require_same(tables: Mapping[str, Any], labels: Sequence[Mapping[str, Any]]) -> None:
    first = next(iter(tables))
    for role, there in zip(tables, labels, strict=True):
        if different := sorted(set(there) ^ set(labels[0])):
            raise DataError(
                f"Expected the same columns in every table; the {first} and the {role} differ in "
                f"{', '.join(different)}."
            )


def _column(name: str, label: Any, parts: Mapping[str, Any]) -> Column:
    """Chooses the coding of a column by its values in all tables."""
    pandas = require_pandas()
    kinds = {role: kind for role, part in parts.items() if (kind := _kind(name, role, part))}
    if len(set(kinds.values())) > 1:
        told = " and ".join(f"{kind} among the {role}" for role, kind in kinds.items())
        raise DataError(
            f"Expected the column {name} to be of one kind in every table, got {told}. Read it as "
            "words everywhere: frame[name].astype(str)."
        )
    with unwarned("The behavior of"):  # pandas, for columns with only missing values
        joined = pandas.concat(list(parts.values()), ignore_index=True)
    is_number = pandas.api.types.is_numeric_dtype(joined.dtype)
    if is_number and joined.notna().any():
        return Numbers.of(name, label, joined)
    return Words.of(name, label, joined)


def _kind(name: str, role: str, part: Any) -> str:
    """Returns whether a column has numbers or words; nothing if it is empty.

    Errors: DataError for dates, lists and the like.
    """
    pandas = require_pandas()
    known = part.dropna()
    if not len(known):
        return ""
    kind = part.dtype
    if pandas.api.types.is_numeric_dtype(kind) and kind.kind != "c":
        return "numbers"
    is_words = isinstance(kind, pandas.CategoricalDtype | pandas.StringDtype)
    cells = [] if is_words else known.tolist()
    is_object = pandas.api.types.is_object_dtype(kind)
    if not (is_words or is_object) or not all(
        isinstance(cell, str | bool | int | float | np.generic) for cell in cells
    ):
        what = "cells that are none" if is_object else kind
        raise DataError(
            f"Expected numbers, words or True and False in the column {name} of the {role}, got "
            f"{what}. Derive such columns from it first, as frame[name].dt.year of a date."
        )
    return "words" if is_words or any(isinstance(cell, str) for cell in cells) else "numbers"
