"""Estimators such as scikit-learn's, known by what they can do; nothing of theirs is imported."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.outputs.functions import Around


class Estimator(Around):
    """Calls ``predict_proba`` of a fitted estimator or pipeline, and knows its classes and columns.

    The answer has a column for each class. An estimator of two classes may give the probability of
    the second alone, (rows,) or (rows, 1): the other column is put before it.
    Errors: ConfigError for an estimator that is not fitted, knows one class only, or has several
        targets; AnswerError for an answer of another number of classes.
    """

    def __init__(self, estimator: Any) -> None:
        _require_fitted(estimator)
        super().__init__(estimator.predict_proba)
        self.estimator = estimator
        _ = self.classes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Shapes: arrays, tables or tensors with a row for each record -> (rows, classes)."""
        answers, classes = super().forward(*args, **kwargs), self.classes
        if isinstance(answers, list | tuple):
            raise AnswerError(_several(self.name))
        if not isinstance(answers, Tensor):
            return answers
        if answers.dim() == 1:
            answers = answers.unsqueeze(1)
        if answers.dim() == 2 and answers.shape[1] == 1 and (classes is None or len(classes) == 2):
            answers = torch.cat([1 - answers, answers], 1)
        if classes is not None and answers.shape[1:] != (len(classes),):
            raise AnswerError(
                f"Expected predict_proba of {self.name} to give a column for each of its "
                f"{len(classes)} classes, got shape {tuple(answers.shape)}."
            )
        return answers

    @property
    def classes(self) -> NDArray[Any] | None:
        """Returns the estimator's ``classes_``; None where it does not say them."""
        given = getattr(self.estimator, "classes_", None)
        if given is None:
            return None
        if isinstance(given, list | tuple) and any(np.ndim(part) for part in given):
            raise ConfigError(_several(self.name))
        classes = np.asarray(given)
        if len(classes) < 2:
            raise ConfigError(
                f"Expected {self.name} to know two classes or more, got one: {classes.tolist()}. "
                "Every answer would be that class. Fit it on records of both."
            )
        return classes

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Returns the names of the columns that it was fitted on; None where it knows no names."""
        names = getattr(self.estimator, "feature_names_in_", None)
        return None if names is None else tuple(map(str, names))

    @property
    def reads_tables(self) -> bool:
        """Says whether it is asked by tables with named columns, not by arrays."""
        return self.columns is not None or not hasattr(self.estimator, "n_features_in_")

    @property
    def name(self) -> str:
        """Returns the name of the estimator's class."""
        return type(self.estimator).__name__

    def __repr__(self) -> str:
        return f"Estimator({self.name})"


def is_estimator(model: object) -> bool:
    """Says whether something is an estimator that gives probabilities of classes."""
    return not isinstance(model, type) and callable(getattr(model, "predict_proba", None))


def _require_fitted(estimator: Any) -> None:
    """Raises ConfigError for an estimator that has learned nothing, by scikit-learn's own signs."""
    own = getattr(estimator, "__sklearn_is_fitted__", None)
    if callable(own):
        fitted = bool(own())
    elif hasattr(estimator, "classes_") or not hasattr(estimator, "fit"):
        fitted = True
    else:
        names = vars(estimator) if hasattr(estimator, "__dict__") else ("?_",)
        fitted = any(name.endswith("_") and not name.startswith("__") for name in names)
    if not fitted:
        name = type(estimator).__name__
        raise ConfigError(
            f"Expected a fitted estimator, got {name} that is not fitted yet. Call "
            f"fit(inputs, labels) first, then harden it."
        )


def _several(name: str) -> str:
    return (
        f"Expected {name} to answer with one target, got several (its classes_ or answers are a "
        "list). Make a Shield for each: Shield.around(lambda inputs: "
        "estimator.predict_proba(inputs)[0], ...)."
    )
