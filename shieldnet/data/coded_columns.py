"""Coding of one table column as numbers: the number itself, or one code per word."""

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shieldnet.core.errors import DataError, MissingDependency

_MAX_WORDS = 1000
_EXACT = 2**53  # float64 cannot distinguish all integers above

Codes = NDArray[np.float64]


def require_pandas() -> Any:
    """Returns pandas, or raises MissingDependency with the install command."""
    try:
        import pandas
    except ImportError as missing:
        raise MissingDependency(
            "Tables with text or missing values need the package pandas, which is not installed. "
            "Install it with: pip install pandas"
        ) from missing
    return pandas


@dataclass(frozen=True, eq=False)
class Column(ABC):
    """Codes one column. label: its label in the table; name: the label as text. dtype: pandas'."""

    name: str
    label: Any
    dtype: Any

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Returns the names of the codes."""

    @property
    @abstractmethod
    def content(self) -> tuple[Any, ...]:
        """Returns everything that determines the codes, as plain values."""

    @abstractmethod
    def encode(self, values: Any) -> Codes:
        """Shapes: a Series (rows,) -> (rows, codes)."""

    @abstractmethod
    def decode(self, codes: Codes) -> Any:
        """Shapes: (rows, codes) -> (rows,) of the column's type."""


@dataclass(frozen=True, eq=False)
class Numbers(Column):
    """Codes numbers and booleans as themselves; a second code is 1 where a value is missing.

    whole: the sorted integers that occur, if all are integers; codes decode to one of them. low,
    high: range of fractions. fill: code of a missing value.
    Shapes: whole (values,).
    """

    whole: Codes | None
    low: float
    high: float
    fill: float
    may_be_missing: bool

    @classmethod
    def of(cls, name: str, label: Any, values: Any) -> "Numbers":
        """Reads a column. Errors: DataError for numbers that are infinite or too large."""
        numbers = _floats(values)
        missing = np.isnan(numbers)
        known = numbers[~missing]
        if not np.isfinite(known).all():
            raise DataError(f"Expected finite numbers in the column {name}, got Inf.")
        whole = np.unique(known) if (known == np.round(known)).all() else None
        is_exact = values.dtype.kind not in "iu" or float(np.abs(known).max()) < _EXACT
        if not is_exact:
            raise DataError(
                f"The column {name} has integers above 2^53, like record keys. Fit the model "
                "without it, or pass it as text."
            )
        ends = float(known.min()), float(known.max())
        fill = float(np.median(known)) if whole is None else float(whole[len(whole) // 2])
        return cls(name, label, values.dtype, whole, *ends, fill, bool(missing.any()))

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, f"{self.name}=missing") if self.may_be_missing else (self.name,)

    @property
    def content(self) -> tuple[Any, ...]:
        whole = None if self.whole is None else self.whole.tolist()
        return self.names, str(self.dtype), whole, self.low, self.high, self.fill

    def encode(self, values: Any) -> Codes:
        numbers = _floats(values)
        missing = np.isnan(numbers)
        parts = [np.where(missing, self.fill, numbers)]
        if self.may_be_missing:
            parts.append(missing.astype(np.float64))
        return np.stack(parts, 1)

    def decode(self, codes: Codes) -> Any:
        pandas = require_pandas()
        numbers = np.clip(codes[:, 0], self.low, self.high)
        if self.whole is not None:
            numbers = _nearest(self.whole, numbers)
        if self.may_be_missing:
            numbers = np.where(codes[:, 1] >= 0.5, np.nan, numbers)
        return pandas.Series(numbers).astype(self.dtype)


@dataclass(frozen=True, eq=False)
class Words(Column):
    """One-hot codes words, categories, and cells of several types.

    Missing values are categories; None and NaN differ, as in a pipeline. levels: the distinct
    cells, in order.
    """

    levels: tuple[Any, ...]

    @classmethod
    def of(cls, name: str, label: Any, values: Any) -> "Words":
        """Reads a column. Errors: DataError for too many distinct words."""
        cells = {_key(cell): cell for cell in _cells(values)}
        if len(cells) > _MAX_WORDS:
            raise DataError(
                f"The column {name} has {len(cells)} different words, more than {_MAX_WORDS}: it "
                "names records, or is free text. Fit the model without it, or pass numbers as "
                "numbers: frame[name].astype(float)."
            )
        keys = sorted(cells, key=lambda key: (key[0] == "", str(key[1]), key[0]))
        return cls(name, label, values.dtype, tuple(cells[key] for key in keys))

    @property
    def names(self) -> tuple[str, ...]:
        keys = [_key(level) for level in self.levels]
        plain = [
            f"{self.name}={level if key[0] else 'missing'}"
            for key, level in zip(keys, self.levels, strict=True)
        ]
        times = Counter(plain)
        return tuple(
            name if times[name] == 1 else f"{name} ({key[0] or f'missing, {key[1]}'})"
            for name, key in zip(plain, keys, strict=True)
        )

    @property
    def content(self) -> tuple[Any, ...]:
        return self.names, str(self.dtype), tuple(map(repr, self.levels))

    def encode(self, values: Any) -> Codes:
        number_of = {_key(level): number for number, level in enumerate(self.levels)}
        try:
            places = [number_of[_key(cell)] for cell in _cells(values)]
        except KeyError as unknown:
            raise DataError(
                f"The column {self.name} has the value {unknown.args[0][1]!r}, which occurs in no "
                "set of the audit."
            ) from unknown
        codes = np.zeros((len(places), len(self.levels)))
        codes[np.arange(len(places)), places] = 1
        return codes

    def decode(self, codes: Codes) -> Any:
        pandas = require_pandas()
        levels = np.empty(len(self.levels), object)
        levels[:] = self.levels
        return pandas.Series(levels[codes.argmax(1)], dtype=self.dtype)


def _floats(values: Any) -> Codes:
    numbers: Codes = values.to_numpy(dtype=np.float64, na_value=np.nan)
    return numbers


def _nearest(known: Codes, numbers: Codes) -> Codes:
    """Returns the nearest of the sorted known numbers; the smaller one of a tie."""
    above = np.searchsorted(known, numbers).clip(0, len(known) - 1)
    below = (above - 1).clip(0)
    is_above = known[above] - numbers < numbers - known[below]
    nearest: Codes = np.where(is_above, known[above], known[below])
    return nearest


def _cells(values: Any) -> list[Any]:
    """Lists the cells of a column; in a column of one type, NaN stands for any missing value."""
    cells: list[Any] = values.astype(object).tolist()
    if values.dtype != object:
        cells = [np.nan if gone else cell for cell, gone in zip(cells, values.isna(), strict=True)]
    return cells


def _key(cell: Any) -> tuple[str, Any]:
    """Distinguishes cells as pipelines do: 1, "1" and True differ; missing values have no type."""
    if cell is None or type(cell).__name__ in ("NAType", "NaTType") or cell != cell:
        return "", type(cell).__name__
    return type(cell).__name__, cell
