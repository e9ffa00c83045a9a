"""Audits of models that read tables: attacks move codes, the model is asked by tables."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shieldnet.attacks.membership.shadows import Train
from shieldnet.attacks.secrets import places_of
from shieldnet.core.errors import ConfigError, DataError, ShieldnetError
from shieldnet.data.beside import Beside
from shieldnet.data.examples import Examples
from shieldnet.data.table_coding import TableCoding, as_table, is_plain
from shieldnet.outputs.adapters import as_function, as_module
from shieldnet.outputs.estimators import Estimator
from shieldnet.outputs.functions import Around
from shieldnet.outputs.sessions import Session
from shieldnet.shield.module import Shield
from shieldnet.training.recipe import Recipe

_log = logging.getLogger(__name__)


class TableModel(nn.Module):
    """Answers codes of a table: reads them as a table, of which it asks the model.

    coding: None where codes are the records themselves. classes: all of them, in the order of the
    answers; a shadow may know some alone.
    """

    def __init__(
        self,
        asked: nn.Module,
        coding: TableCoding | None,
        classes: NDArray[Any] | None = None,
    ) -> None:
        super().__init__()
        self.asked = asked
        self.coding = coding
        self.classes = classes
        self.by_arrays = isinstance(asked, Estimator) and not asked.reads_tables
        self.training = False

    def forward(self, codes: Tensor) -> Tensor:
        """Shapes: (rows, codes) -> what the model answers about these rows.

        Errors: DataError for a table that the model cannot read.
        """
        records = self.records(codes)
        try:
            answers: Tensor = self.asked(records)
        except ShieldnetError:
            raise
        except Exception as unreadable:  # the user's own pipeline: whatever it raises
            raise DataError(
                f"The model cannot read these records: {type(unreadable).__name__}: {unreadable}"
            ) from unreadable
        return self._among_all(answers)

    def records(self, codes: Tensor) -> Any:
        """Returns codes in the records' own form: a table, or an array where the model reads one.

        Shapes: (rows, codes) -> (rows, columns).
        """
        if self.coding is None:
            return codes.detach().cpu().numpy()
        table = self.coding.decode(codes)
        return table.to_numpy() if self.by_arrays else table

    def nearest_table_codes(self, codes: Tensor) -> Tensor:
        """Returns the codes of the table that codes are read as. Shapes: (rows, codes)."""
        coding = self.coding
        return codes if coding is None else coding.encode(coding.decode(codes)).to(codes)

    def _among_all(self, answers: Tensor) -> Tensor:
        """Gives a class that a shadow never saw the probability 0."""
        own = self.asked.classes if isinstance(self.asked, Estimator) else None
        if own is None or self.classes is None or own.tolist() == self.classes.tolist():
            return answers
        every = self.classes.tolist()
        among = torch.zeros(len(answers), len(every), dtype=answers.dtype)
        among[:, [every.index(name) for name in own.tolist()]] = answers
        return among


@dataclass(frozen=True)
class TrainOnRecords:
    """Trains as the user's function does: on records and labels in their own form.

    classes: names what labels number. gives_values: whether the model is a regression.
    """

    train: Train
    model: TableModel
    gives_values: bool = False

    def __call__(self, data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
        codes, labels = data
        classes = self.model.classes
        own = labels.numpy() if classes is None else classes[labels.numpy()]
        trained: Any = self.train((self.model.records(codes), own), seed)  # type: ignore[arg-type]  # the user's own form
        if self.gives_values:
            fitted = as_regression(trained)
            is_model = isinstance(fitted, nn.Module)
            return TableModel(fitted, self.model.coding) if is_model else fitted
        if isinstance(trained, nn.Module) or not hasattr(trained, "predict_proba"):
            return trained  # type: ignore[no-any-return]  # what is none is refused where it is called
        return TableModel(as_module(trained), self.model.coding, classes)


@dataclass(frozen=True)
class TrainRegression:
    """Trains as the user's function does, which may return a fitted regression of arrays."""

    train: Train

    def __call__(self, data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
        return as_regression(self.train(data, seed))  # type: ignore[no-any-return]  # what is none is refused


def as_regression(trained: Any) -> Any:
    """Returns a module that asks a fitted regression, such as scikit-learn's; others as they are.

    What is no model is refused where it is called.
    """
    if isinstance(trained, nn.Module) or not callable(getattr(trained, "predict", None)):
        return trained
    return as_function(trained.predict)


@dataclass(frozen=True)
class Given:
    """Holds what an audit is given, as attacks read it: shields of codes, sets of codes.

    sensitive: names of columns. unread: columns of the tables that the model does not read.
    beside: those of them that are sensitive.
    """

    shields: Mapping[str, Shield]
    sets: Mapping[str, Any]
    columns: Sequence[str]
    train: Train | None
    sensitive: Sequence[str] = ()
    unread: tuple[str, ...] = ()
    beside: Beside | None = None

    @property
    def gives_values(self) -> bool:
        """Returns whether the model is a regression, whose labels are targets."""
        return next(iter(self.shields.values())).chain.layout.kind == "values"

    def as_codes(self, canaries: object) -> "Given":
        """Writes tables as codes where the model reads tables, and labels as numbers of classes.

        Errors: DataError for tables that do not fit the model, ConfigError for canaries of one.
        """
        shields = self.shields
        model = next(iter(shields.values())).model
        if not isinstance(model, Around) or isinstance(model, Session):
            return self
        parts = {role: _parted(value) for role, value in self.sets.items() if value is not None}
        is_coded = any(_needs_coding(model, inputs) for inputs, _ in parts.values())
        if not (is_coded or isinstance(model, Estimator)):
            return replace(self, train=_of_values(self.train)) if self.gives_values else self
        if canaries is not None and is_coded:
            raise ConfigError("Expected no canaries: those planted in a table are not read yet.")
        classes = model.classes if isinstance(model, Estimator) else None
        labels = {
            role: None if given is None else _numbered(given, classes, role, model)
            for role, (_, given) in parts.items()
        }
        inputs = {role: rows for role, (rows, _) in parts.items()}
        coding: TableCoding | None = None
        unread: tuple[str, ...] = ()
        beside: Beside | None = None
        if is_coded:
            tables = _tables(model, inputs)
            inputs, coding = _coded(model, tables)
            unread, beside = _unread(tables, coding, self.sensitive)
        asked = TableModel(model, coding, classes)
        sets = {
            role: rows if labels[role] is None else (rows, labels[role])
            for role, rows in inputs.items()
        }
        train = _trained(self.train, asked, self.gives_values)
        given = replace(self, sets={**self.sets, **sets}, train=train)
        if coding is None:
            return given
        _require_names(self.columns, coding)
        shields = {name: shield.with_model(asked) for name, shield in shields.items()}
        _require_readable(asked, inputs)
        return replace(given, shields=shields, columns=coding.names, unread=unread, beside=beside)


def _parted(value: Any) -> tuple[Any, Any]:
    """Parts (inputs, labels); what is no pair is inputs alone."""
    if isinstance(value, Examples):
        return value.inputs, value.labels
    return tuple(value) if isinstance(value, tuple | list) and len(value) == 2 else (value, None)


def _needs_coding(model: Around, inputs: Any) -> bool:
    """Returns whether inputs are a table that the model is to get as one."""
    is_table = hasattr(inputs, "iloc") or hasattr(inputs, "to_pandas")
    if isinstance(model, Estimator) and model.reads_tables and is_table:
        return True
    if is_table:
        return not is_plain(as_table(inputs))
    if not (isinstance(inputs, Tensor | np.ndarray) and inputs.ndim == 2):
        return False
    if isinstance(model, Estimator) and model.columns is not None:
        return True
    rows = np.asarray(inputs)
    return rows.dtype.kind in "OU" or (rows.dtype.kind == "f" and bool(np.isnan(rows).any()))


def _wanted(model: Around) -> tuple[str, ...] | None:
    return model.columns if isinstance(model, Estimator) else None


def _tables(model: Around, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {role: as_table(rows, _wanted(model)) for role, rows in inputs.items()}


def _coded(model: Around, tables: Mapping[str, Any]) -> tuple[dict[str, Tensor], TableCoding]:
    coding = TableCoding.of(tables, _wanted(model))
    return {role: coding.encode(table) for role, table in tables.items()}, coding


def _unread(
    tables: Mapping[str, Any], coding: TableCoding, sensitive: Sequence[str]
) -> tuple[tuple[str, ...], Beside | None]:
    """Returns columns that the model does not read, and the codes of those that are sensitive.

    Errors: DataError for a sensitive name that is no column of the tables.
    """
    if isinstance(sensitive, str):  # which the case refuses
        sensitive = ()
    read = {column.name for column in coding.columns}
    names = [str(name) for name in next(iter(tables.values())).columns]
    there = {str(name) for table in tables.values() for name in table.columns}
    in_every_table = [
        name for name in names if all(name in map(str, part.columns) for part in tables.values())
    ]
    kept = [name for name in sensitive if name in in_every_table and name not in read]
    for name in sensitive:
        if name not in (*kept, *read, *coding.names):
            places_of(tuple(in_every_table), name)
    unread = tuple(sorted(there - read))
    if unread:
        shown = (f"{name} (kept, as it is sensitive)" if name in kept else name for name in unread)
        _log.info("The model ignores: %s", ", ".join(shown))
    if not kept:
        return unread, None
    own = TableCoding.of(tables, kept)
    codes = {role: own.encode(table) for role, table in tables.items()}
    return unread, Beside(own.names, codes)


def _numbered(labels: Any, classes: NDArray[Any] | None, role: str, model: Around) -> Tensor | Any:
    """Returns the number of each label's class, in the order of the estimator's ``classes_``."""
    if classes is None:
        return labels
    own = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    number_of = {_plain(name): number for number, name in enumerate(classes.tolist())}
    written = {str(name): number for name, number in number_of.items()}
    cells = [_plain(label) for label in own.reshape(-1).tolist()]
    if missing := sum(label is None or label != label for label in cells):
        raise DataError(f"{missing} labels of the {role} are missing: drop these records.")
    is_known = all(label in number_of for label in cells)
    if not is_known and len(written) == len(classes):  # a file does not say whether 1 is a word
        cells, number_of = [str(label) for label in cells], written
    for label in cells:
        if label not in number_of:
            raise DataError(
                f"Expected labels of the {role} among the classes of {model!r} "
                f"({', '.join(map(str, classes.tolist()[:6]))}), got {label!r}. Give labels as the "
                "estimator was fitted on them, in the column that --label names."
            )
    return torch.tensor([number_of[label] for label in cells]).reshape(own.shape)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _trained(train: Train | None, asked: TableModel, gives_values: bool) -> Train | None:
    is_own = train is None or isinstance(train, Recipe)
    return train if is_own or not callable(train) else TrainOnRecords(train, asked, gives_values)


def _of_values(train: Train | None) -> Train | None:
    is_own = train is None or isinstance(train, Recipe)
    return train if is_own or not callable(train) else TrainRegression(train)


def _require_names(columns: Sequence[str], coding: TableCoding) -> None:
    own = [column.name for column in coding.columns]
    if columns and sorted(columns) not in (sorted(own), sorted(coding.names)):
        raise ConfigError(
            f"Expected no columns beside a table, which has names of its own ({', '.join(own)}); "
            f"got {', '.join(columns)}. Leave columns out."
        )


def _require_readable(asked: TableModel, inputs: Mapping[str, Tensor]) -> None:
    """Asks once about every record, to report one that the pipeline refuses at the start."""
    for role, codes in inputs.items():
        try:
            asked(codes)
        except ShieldnetError as unreadable:
            raise DataError(f"Among the {role}: {unreadable}") from unreadable
