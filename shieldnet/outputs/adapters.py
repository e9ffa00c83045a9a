"""Adapters that make estimators, ONNX sessions and functions torch modules."""

from typing import Any

from torch import nn

from shieldnet.core.errors import ConfigError
from shieldnet.outputs.estimator_types import type_of
from shieldnet.outputs.estimators import (
    Classifier,
    Regressor,
    gives_probabilities,
    is_regressor,
)
from shieldnet.outputs.functions import Around
from shieldnet.outputs.layout import Kind
from shieldnet.outputs.sessions import Session, is_session

_OF_VALUES = "Shield.around(function, ClipRange(low, high), RoundTo(step), outputs='values')"


def as_module(model: Any) -> nn.Module:
    """Returns a torch module unchanged, and wraps any other supported model.

    Supported are classifiers and pipelines with ``predict_proba``, regressors with ``predict``, an
    ``InferenceSession`` of ONNX Runtime, and functions of arrays.
    Errors: ConfigError for anything else, with the fix where there is one.
    """
    if isinstance(model, nn.Module):
        return model
    if gives_probabilities(model):
        return Classifier(model)
    if is_regressor(model):
        return Regressor(model)
    if is_session(model):
        return Session(model)
    if callable(model) and not isinstance(model, type):
        return as_function(model)
    raise _unusable(model)


def as_function(function: Any) -> Around:
    """Wraps a function of arrays; a regressor, or its ``predict``, as the regressor.

    A regressor may read tables with named columns, which a function of arrays does not say.
    Errors: ConfigError for what is no function, and for a regressor that is not fitted.
    """
    owner = getattr(function, "__self__", None)
    if is_regressor(owner) and getattr(function, "__name__", "") == "predict":
        return Regressor(owner)
    if is_regressor(function):
        return Regressor(function)
    if isinstance(function, type) and hasattr(function, "fit"):
        raise _unusable(function)
    if hasattr(function, "predict") and not (callable(function) or gives_probabilities(function)):
        raise _unusable(function)
    return Around(function)


def default_kind(model: nn.Module) -> Kind | None:
    """Returns a model's default kind of output; None for a network, whose kind is inferred."""
    if isinstance(model, Regressor):
        return "values"
    return "probabilities" if isinstance(model, Around) else None


def name_of(model: nn.Module) -> str:
    """Returns the name of a model's class, or of the wrapped object."""
    return model.name if isinstance(model, Around) else type(model).__name__


def _unusable(model: object) -> ConfigError:
    return ConfigError(
        "Expected model to be an nn.Module, a fitted classifier with predict_proba, a fitted "
        "regressor, a session of ONNX Runtime or a function of arrays; got "
        f"{_described(model)}"
    )


def _described(model: object) -> str:
    if isinstance(model, type):
        return f"the class {model.__name__}. Pass an instance, fitted or trained."
    name = type(model).__name__
    if not callable(getattr(model, "predict", None)):
        return f"{name}."
    stated = type_of(model)
    if stated == "classifier" or hasattr(model, "classes_"):
        return (
            f"{name}, which has no predict_proba, and whose predict gives labels. Use "
            "SVC(probability=True), or wrap it in CalibratedClassifierCV."
        )
    if stated is not None:
        return (
            f"{name}, an estimator of the type {stated}: its predict gives neither probabilities "
            f"nor the values of a regression. To release other numbers of it, use {_OF_VALUES} "
            "with a function that returns them."
        )
    return (
        f"{name}, which has no predict_proba and does not say that it is a regressor "
        "(_estimator_type = 'regressor'). If its predict gives the values of a regression, use "
        f"{_OF_VALUES} with function = model.predict."
    )
