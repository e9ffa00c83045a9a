"""Estimators such as scikit-learn's, recognized by their methods, without importing the library."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shieldnet.core.errors import AnswerError, ConfigError, DataError
from shieldnet.outputs.estimator_types import type_of
from shieldnet.outputs.functions import Around, as_tensor


class Estimator(Around):
    """Calls a method of a fitted estimator or pipeline, which may read tables with named columns.

    Errors: ConfigError for an estimator that is not fitted.
    """

    def __init__(self, estimator: Any, method: str) -> None:
        require_fitted(estimator)
        super().__init__(getattr(estimator, method))
        self.estimator = estimator

    @property
    def classes(self) -> NDArray[Any] | None:
        """Returns the classes that its answers are about, or None if it states none."""
        return None

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Returns the names of the columns that it was fitted on, or None if it has no names."""
        names = getattr(self.estimator, "feature_names_in_", None)
        return None if names is None else tuple(map(str, names))

    @property
    def reads_tables(self) -> bool:
        """Returns whether it takes tables with named columns rather than arrays."""
        return self.columns is not None or not hasattr(self.estimator, "n_features_in_")

    @property
    def name(self) -> str:
        """Returns the name of the estimator's class."""
        return type(self.estimator).__name__

    def columns_of(self, table: Any, role: str) -> Any:
        """Returns the columns of a DataFrame that it was fitted on, in its order and form.

        role: what the table holds, for messages. Errors: DataError for columns that are missing.
        """
        if not self.reads_tables:
            return table.to_numpy()
        if self.columns is None:
            return table
        there = {str(label): label for label in table.columns}
        if missing := [name for name in self.columns if name not in there]:
            raise DataError(
                f"The {role} lack columns that the model needs: {', '.join(missing)}. They have: "
                f"{', '.join(there)}."
            )
        return table[[there[name] for name in self.columns]]

    def __repr__(self) -> str:
        return f"Estimator({self.name})"


class Classifier(Estimator):
    """Calls ``predict_proba`` of a fitted estimator or pipeline.

    The answer has a column per class. If an estimator of two classes returns only the probability
    of the second, (rows,) or (rows, 1), the column of the first is prepended.
    Errors: ConfigError for an estimator that is not fitted, has a single class, or has several
        targets; AnswerError for an answer with another number of classes.
    """

    def __init__(self, estimator: Any) -> None:
        super().__init__(estimator, "predict_proba")
        _ = self.classes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Shapes: arrays, tables or tensors with a row per record -> (rows, classes)."""
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
                f"Expected predict_proba of {self.name} to return a column for each of its "
                f"{len(classes)} classes, got shape {tuple(answers.shape)}."
            )
        return answers

    @property
    def classes(self) -> NDArray[Any] | None:
        """Returns the estimator's ``classes_``, or None if it has none."""
        given = getattr(self.estimator, "classes_", None)
        if given is None:
            return None
        if isinstance(given, list | tuple) and any(np.ndim(part) for part in given):
            raise ConfigError(_several(self.name))
        classes = np.asarray(given)
        if len(classes) < 2:
            raise ConfigError(
                f"Expected {self.name} to have at least two classes, got one: {classes.tolist()}. "
                "Every answer would be that class. Fit it on records of several classes."
            )
        return classes


class Regressor(Estimator):
    """Calls ``predict`` of a fitted regressor, or of a pipeline that ends in one.

    Errors: ConfigError for a regressor that is not fitted; AnswerError for an answer that is no
        array of numbers.
    """

    def __init__(self, estimator: Any) -> None:
        super().__init__(estimator, "predict")

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Shapes: arrays, tables or tensors with a row per record -> (rows,) or (rows, outputs)."""
        given = self.asked(args, kwargs)
        answers = as_tensor(np.asarray(given)) if hasattr(given, "__array__") else given
        if not isinstance(answers, Tensor) or answers.dim() not in (1, 2):
            form = type(given).__name__
            shape = f" of shape {tuple(answers.shape)}" if isinstance(answers, Tensor) else ""
            raise AnswerError(
                f"Expected predict of {self.name} to return an array of shape (rows,) or (rows, "
                f"outputs), got {form}{shape}."
            )
        return answers if answers.is_floating_point() else answers.double()


def stated_classes(model: object) -> int | None:
    """Returns how many classes a fitted estimator knows, or None for other models."""
    classes = model.classes if isinstance(model, Estimator) else None
    return None if classes is None else len(classes)


def is_estimator(model: object) -> bool:
    """Returns whether an object is an estimator of class probabilities, or a regressor."""
    return gives_probabilities(model) or is_regressor(model)


def gives_probabilities(model: object) -> bool:
    """Returns whether an object is an estimator with class probabilities."""
    return not isinstance(model, type) and callable(getattr(model, "predict_proba", None))


def is_regressor(model: object) -> bool:
    """Returns whether an object with ``predict`` states that it is a regressor, and no classes."""
    if isinstance(model, type) or gives_probabilities(model) or hasattr(model, "classes_"):
        return False
    return callable(getattr(model, "predict", None)) and type_of(model) == "regressor"


def require_fitted(estimator: Any) -> None:
    """Raises ConfigError for an estimator that is not fitted, by scikit-learn's conventions."""
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
        learned = "targets" if is_regressor(estimator) else "labels"
        raise ConfigError(
            f"Expected a fitted estimator, got {name}, which is not fitted yet. Call "
            f"fit(inputs, {learned}) first, then harden it."
        )


def _several(name: str) -> str:
    return (
        f"Expected {name} to have one target, got several (its classes_ or answers are a list). "
        "Make a Shield for each: Shield.around(lambda inputs: "
        "estimator.predict_proba(inputs)[0], ...)."
    )
