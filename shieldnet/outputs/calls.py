"""Calls that a model cannot answer, explained: inputs elsewhere, or inputs given as one."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shieldnet.core.errors import AnswerError


def explain_call(
    failed: Exception, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Raises AnswerError where it is plain why a model failed, with the line that works."""
    _explain_inputs_given_as_one(failed, model, args)
    if isinstance(failed, RuntimeError):
        explain_devices(failed, model, (*args, *kwargs.values()))


def _explain_inputs_given_as_one(
    failed: Exception, model: nn.Module, args: tuple[Any, ...]
) -> None:
    """Explains a dict or tuple of inputs in the place of the first, where the model takes each."""
    if len(args) != 1:
        return
    named = _arguments(model)
    if isinstance(args[0], Mapping) and args[0] and set(args[0]) <= set(named):
        taken = ", ".join(map(str, args[0]))
        raise AnswerError(
            f"Expected each input by its name, got one dict of {taken}, which the model takes as "
            "arguments: shield(**inputs)."
        ) from failed
    is_tuple = isinstance(args[0], tuple | list) and len(args[0]) > 1
    if is_tuple and len(named) >= len(args[0]) and all(isinstance(x, Tensor) for x in args[0]):
        raise AnswerError(
            f"Expected each input by itself, got one {type(args[0]).__name__} of {len(args[0])} "
            f"tensors, and the model takes {', '.join(named[: len(args[0])])}: shield(*inputs)."
        ) from failed


def _arguments(model: nn.Module) -> list[str]:
    """Lists the arguments that a model's forward names; none where it cannot be told."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in plain]


def explain_devices(failed: RuntimeError, model: nn.Module, values: Iterable[Any]) -> None:
    """Raises AnswerError where a model failed because its input is on another device."""
    own = {parameter.device for parameter in model.parameters()}
    devices = {value.device for value in values if isinstance(value, Tensor)}
    if own and devices - own:
        raise AnswerError(
            f"The input is on {_listed(devices)}, the model on {_listed(own)}: "
            "move one to the other."
        ) from failed


def _listed(devices: Iterable[torch.device]) -> str:
    return " and ".join(sorted(map(str, devices)))
