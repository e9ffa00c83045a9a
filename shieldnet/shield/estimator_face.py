"""What a hardened estimator shows of scikit-learn's interface, all of it from released answers."""

from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shieldnet.core.errors import BypassError
from shieldnet.defenses import Chain
from shieldnet.outputs.estimators import Estimator, Regressor
from shieldnet.outputs.layout import ROW_KINDS, Kind

_SHOWN = (
    *("predict", "score", "fit", "n_features_in_", "feature_names_in_"),
    *("_estimator_type", "__sklearn_tags__", "__sklearn_is_fitted__"),
)
_SHOWN_OF_CLASSES = ("predict_proba", "classes_")
_INSTEAD = {
    "predict_log_proba": "numpy.log(shield.predict_proba(inputs))",
    "decision_function": "shield.predict_proba(inputs)",
}


class Answering(Protocol):
    """A shield around an estimator."""

    @property
    def release(self) -> Kind:
        """Returns the kind of what is released."""

    @property
    def chain(self) -> Chain:
        """Returns the defenses of the answer."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def distribution(self, answers: Any) -> Tensor:
        """Reads released answers as the distributions that they state."""


class EstimatorFace:
    """Shows what every estimator has."""

    def __init__(self, shield: Answering, model: Estimator) -> None:
        self.shield = shield
        self.model = model

    def fit(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuses: a shield answers, its estimator learns."""
        raise refused("fit", self.model)

    @property
    def n_features_in_(self) -> Any:
        return self.model.estimator.n_features_in_

    @property
    def feature_names_in_(self) -> Any:
        return self.model.estimator.feature_names_in_

    @property
    def _estimator_type(self) -> Any:
        return self.model.estimator._estimator_type

    @property
    def __sklearn_tags__(self) -> Any:
        return self.model.estimator.__sklearn_tags__

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def _answers(self, inputs: Any) -> Any:
        rows = np.asarray(inputs) if isinstance(inputs, list | tuple) else inputs
        return self.shield(rows)


class RegressorFace(EstimatorFace):
    """Answers as a regressor's own methods do, with what the shield releases.

    Each call is an answer with its cost, and with fresh noise where the shield has some.
    """

    def predict(self, inputs: Any) -> NDArray[Any]:
        """Returns the released values.

        Shapes: arrays, tables or lists of rows -> (rows,) or (rows, outputs).
        """
        return torch.as_tensor(self._answers(inputs)).cpu().numpy()

    def score(self, inputs: Any, targets: Any, sample_weight: Any = None) -> float:
        """Returns the R2 of released values, as the estimator's own: the mean over all outputs.

        Where the targets do not vary it is 1 for answers that are right, else 0.
        """
        given = np.asarray(targets, dtype=np.float64)
        told = self.predict(inputs).astype(np.float64)
        if len(told) != len(given) or told.size != given.size:
            raise ValueError(f"Expected targets of shape {told.shape}, got {given.shape}.")
        told = told.reshape(given.shape)
        missed, varied = (given - told) ** 2, given - np.average(given, 0, sample_weight)
        lost, whole = (np.average(part, 0, sample_weight) for part in (missed, varied**2))
        least = np.where(lost == 0, 1.0, 0.0)
        return float(np.mean(np.where(whole > 0, 1 - lost / np.where(whole > 0, whole, 1), least)))


class ClassifierFace(EstimatorFace):
    """Answers as a classifier's own methods do, with what the shield releases.

    Each call is an answer with its cost, and with fresh noise where the shield has some.
    """

    def predict_proba(self, inputs: Any) -> NDArray[Any]:
        """Returns the probabilities that the released answers state, a column for each class.

        Shapes: arrays, tables or lists of rows -> (rows, classes); (rows, labels) of binary and
        multi-label models.
        """
        return self._stated(inputs).numpy()

    def predict(self, inputs: Any) -> NDArray[Any]:
        """Returns the class of the greatest released probability, as the estimator calls it.

        Shapes: -> (rows,); (rows, labels) of 0 and 1 of binary and multi-label models.
        """
        stated = self._stated(inputs)
        if self._is_binary:
            return (stated >= 0.5).long().numpy()
        winners, classes = stated.argmax(-1).numpy(), self.model.classes
        return winners if classes is None else classes[winners]

    def score(self, inputs: Any, labels: Any, sample_weight: Any = None) -> float:
        """Returns the share of rows whose released class is the label, as the estimator's own."""
        right = self.predict(inputs) == np.asarray(labels)
        right = right.all(1) if right.ndim > 1 else right
        return float(np.average(right, weights=sample_weight))

    @property
    def classes_(self) -> Any:
        return self.model.estimator.classes_

    @property
    def _is_binary(self) -> bool:
        return self.shield.chain.layout.kind in ROW_KINDS

    def _stated(self, inputs: Any) -> Tensor:
        answers = torch.as_tensor(self._answers(inputs)).cpu()
        if self.shield.release == "probabilities" or (
            self._is_binary and self.shield.release != "logits"
        ):
            return answers
        if self._is_binary:
            return answers.sigmoid()
        return self.shield.distribution(answers)


def shown_by(shield: Answering, model: Estimator, name: str) -> Any:
    """Returns an attribute that a hardened estimator has; raises BypassError for its other methods.

    Errors: AttributeError for what the estimator does not have.
    """
    is_regressor = isinstance(model, Regressor)
    if name in _SHOWN or (name in _SHOWN_OF_CLASSES and not is_regressor):
        face = RegressorFace if is_regressor else ClassifierFace
        return getattr(face(shield, model), name)
    if name.startswith("_") or not hasattr(model.estimator, name):
        raise AttributeError(f"A Shield around {model.name} has no attribute {name}.")
    if not callable(getattr(model.estimator, name)):
        raise AttributeError(
            f"shield.{name} is blocked, as what {model.name} learned is not an answer. Read "
            f"shield.model.estimator.{name} where no untrusted client listens."
        )
    raise refused(name, model)


def refused(name: str, model: Estimator) -> BypassError:
    """Refuses a method of an estimator's own."""
    instead = _INSTEAD.get(name, "shield.predict(inputs) or shield.predict_proba(inputs)")
    if isinstance(model, Regressor):
        instead = "shield.predict(inputs)"
    if name == "fit":
        return BypassError(
            "A Shield does not learn: fit the estimator by itself, shield.model.estimator.fit("
            "inputs, labels), and harden what was fitted."
        )
    return BypassError(
        f"shield.{name} is blocked, as it would bypass the defenses. Call "
        f"{instead} instead, or shield.model.estimator.{name} where no untrusted client listens."
    )
