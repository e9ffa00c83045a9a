"""What users bring as a model, as a torch module: networks, estimators, sessions, functions."""

from typing import Any

from torch import nn

from shieldnet.core.errors import ConfigError
from shieldnet.outputs.estimators import Estimator, is_estimator
from shieldnet.outputs.functions import Around
from shieldnet.outputs.layout import Kind
from shieldnet.outputs.sessions import Session, is_session


def as_module(model: Any) -> nn.Module:
    """Returns a torch module as it is, and wraps whatever else answers with scores.

    That is an estimator or pipeline with ``predict_proba``, an ``InferenceSession`` of ONNX
    Runtime, or a function of arrays.
    Errors: ConfigError for anything else, with the way that works where there is one.
    """
    if isinstance(model, nn.Module):
        return model
    if is_estimator(model):
        return Estimator(model)
    if is_session(model):
        return Session(model)
    if callable(model) and not isinstance(model, type):
        return Around(model)
    raise ConfigError(
        "Expected model to be an nn.Module, a fitted estimator with predict_proba, a session of "
        f"ONNX Runtime or a function of arrays; got {_described(model)}"
    )


def default_kind(model: nn.Module) -> Kind | None:
    """Returns what a model gives where nobody says it; None for a network, where it is guessed."""
    return "probabilities" if isinstance(model, Around) else None


def name_of(model: nn.Module) -> str:
    """Returns what users call a model: the name of its class, or of what is wrapped."""
    return model.name if isinstance(model, Estimator | Session) else type(model).__name__


def _described(model: object) -> str:
    if isinstance(model, type):
        return f"the class {model.__name__}. Give an object of it, made and fitted or trained."
    name = type(model).__name__
    if callable(getattr(model, "predict", None)):
        return (
            f"{name}, which has no predict_proba. A classifier: SVC(probability=True), or "
            "CalibratedClassifierCV around it. A regression: Shield.around(estimator.predict, "
            "RoundTo(1.0), outputs='values')."
        )
    return f"{name}."
