"""Answers about public rows, on which the presets of embeddings and values are measured."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shieldnet.core.errors import ConfigError, DataError, ShieldnetError
from shieldnet.outputs.functions import Around
from shieldnet.outputs.nested import replaced
from shieldnet.shield.module import Shield


def answers_about(public_rows: Any, bare: Shield) -> Tensor:
    """Returns the tensor that defenses would act on, of a bare shield's answers.

    public_rows: a tensor, array or table, a tuple of arguments or a dict of named ones. A module
    gets arrays as tensors on its device, fractions in the float type of its weights.
    Errors: ConfigError for what has no rows; DataError where the model cannot answer them.
    """
    args, named = _arguments(public_rows)
    try:
        args = tuple(_as_read(value, bare.model) for value in args)
        named = {name: _as_read(value, bare.model) for name, value in named.items()}
        answers = bare(*args, **named)
    except ShieldnetError:
        raise
    except Exception as failed:  # the model's own: whatever it raises
        given = [*map(_described, args), *(f"{key}={_described(named[key])}" for key in named)]
        raise DataError(
            f"Expected public rows that the model answers, got {', '.join(given)}, on which it "
            f"failed with {type(failed).__name__}: {failed}. Pass calibrate= what the model takes: "
            "one tensor or array, a tuple of arguments, or a dict of them by the arguments' names."
        ) from failed
    return bare.answer_in(replaced(answers, lambda _, leaf: _as_tensor(leaf)))


def _arguments(public_rows: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments of the call, of which at least one has rows."""
    is_named = isinstance(public_rows, Mapping)
    named = dict(public_rows) if is_named else {}
    several = public_rows if isinstance(public_rows, tuple) else (public_rows,)
    args = () if is_named else several
    if not all(isinstance(name, str) for name in named):
        raise ConfigError(f"Expected calibrate= with names of arguments, got {list(named)}.")
    if not any(map(_has_rows, (*args, *named.values()))):
        raise ConfigError(
            "Expected calibrate= to be public rows: a tensor, an array or a table, a tuple of the "
            f"model's arguments or a dict of named ones; got {_described(public_rows)}. Pass a "
            "list of rows as calibrate=numpy.array(rows)."
        )
    return args, named


def _has_rows(value: Any) -> bool:
    is_array = isinstance(value, Tensor | np.ndarray) and value.ndim > 0
    return is_array or hasattr(value, "iloc")


def _as_read(value: Any, model: nn.Module) -> Any:
    if isinstance(model, Around) or not isinstance(value, np.ndarray):
        return value
    rows = torch.as_tensor(np.array(value, order="C"))
    own = next((weight for weight in model.parameters() if weight.is_floating_point()), None)
    if own is None:
        return rows
    return rows.to(own.device, own.dtype if rows.is_floating_point() else None)


def _as_tensor(value: Any) -> Any:
    return torch.as_tensor(value) if isinstance(value, np.ndarray) else value


def _described(value: Any) -> str:
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    return kind if shape is None else f"{kind} {getattr(value, 'dtype', '')} {tuple(shape)}"
