"""What a hardened estimator shows of scikit-learn's interface, all of it from released answers."""

from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shieldnet.core.errors import BypassError
from shieldnet.defenses import Chain
from shieldnet.outputs.estimators import Estimator
from shieldnet.outputs.layout import ROW_KINDS, Kind

_SHOWN = (
    *("predict_proba", "predict", "score", "fit"),
    *("classes_", "n_features_in_", "feature_names_in_"),
    *("_estimator_type", "__sklearn_tags__", "__sklearn_is_fitted__"),
)
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
    """Answers as the estimator's own methods do, with what the shield releases.

    Each call is an answer with its cost, and with fresh noise where the shield has some.
    """

    def __init__(self, shield: Answering, model: Estimator) -> None:
        self.shield = shield
        self.model = model

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

    def fit(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuses: a shield answers, its estimator learns."""
        raise refused("fit")

    @property
    def classes_(self) -> Any:
        return self.model.estimator.classes_

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

    @property
    def _is_binary(self) -> bool:
        return self.shield.chain.layout.kind in ROW_KINDS

    def _stated(self, inputs: Any) -> Tensor:
        rows = np.asarray(inputs) if isinstance(inputs, list | tuple) else inputs
        answers = torch.as_tensor(self.shield(rows)).cpu()
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
    if name in _SHOWN:
        return getattr(EstimatorFace(shield, model), name)
    if name.startswith("_") or not hasattr(model.estimator, name):
        raise AttributeError(f"A Shield around {model.name} has no attribute {name}.")
    if not callable(getattr(model.estimator, name)):
        raise AttributeError(
            f"shield.{name} is blocked, as what {model.name} learned is not an answer. Read "
            f"shield.model.estimator.{name} where no untrusted client listens."
        )
    raise refused(name)


def refused(name: str) -> BypassError:
    """Refuses a method of an estimator's own."""
    instead = _INSTEAD.get(name, "shield.predict(inputs) or shield.predict_proba(inputs)")
    if name == "fit":
        return BypassError(
            "A Shield does not learn: fit the estimator by itself, shield.model.estimator.fit("
            "inputs, labels), and harden what was fitted."
        )
    return BypassError(
        f"shield.{name} is blocked, as it would bypass the defenses. Call "
        f"{instead} instead, or shield.model.estimator.{name} where no untrusted client listens."
    )
