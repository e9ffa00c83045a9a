"""Adapters that make estimators, ONNX sessions and functions torch modules."""

from typing import Any

from torch import nn

from shieldnet.core.errors import ConfigError
from shieldnet.outputs.estimators import Estimator, is_estimator
from shieldnet.outputs.functions import Around
from shieldnet.outputs.layout import Kind
from shieldnet.outputs.sessions import Session, is_session


def as_module(model: Any) -> nn.Module:
    """Returns a torch module unchanged, and wraps any other supported model.

    Supported are estimators and pipelines with ``predict_proba``, an ``InferenceSession`` of ONNX
    Runtime, and functions of arrays.
    Errors: ConfigError for anything else, with the fix where there is one.
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
    """Returns a model's default kind of output; None for a network, whose kind is inferred."""
    return "probabilities" if isinstance(model, Around) else None


def name_of(model: nn.Module) -> str:
    """Returns the name of a model's class, or of the wrapped object."""
    return model.name if isinstance(model, Estimator | Session) else type(model).__name__


def _described(model: object) -> str:
    if isinstance(model, type):
        return f"the class {model.__name__}. Pass an instance, fitted or trained."
    name = type(model).__name__
    if callable(getattr(model, "predict", None)):
        return (
            f"{name}, which has no predict_proba. For a classifier use SVC(probability=True), or "
            "wrap it in CalibratedClassifierCV. For a regression use "
            "Shield.around(estimator.predict, RoundTo(1.0), outputs='values')."
        )
    return f"{name}."
