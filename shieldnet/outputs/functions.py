"""Models that are no torch modules: any function from arrays to arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.outputs.nested import leaves, replaced


class Around(nn.Module):
    """Calls a function with numpy arrays, such as scikit-learn's ``predict_proba``.

    Tensors among the arguments become arrays, arrays in the result become tensors. The function
    gets copies, which it may write into: many a pipeline scales in place.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        if not callable(function) or isinstance(function, nn.Module):
            fix = "A torch module needs Shield(model)."
            if hasattr(function, "predict_proba"):
                fix = "Pass its method: Shield.around(estimator.predict_proba, ...)."
            raise ConfigError(
                f"Expected a function of arrays, got {type(function).__name__}. {fix}"
            )
        self.function = function
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the function returns, as tensors."""
        positional = [_own_array(value) for value in args]
        named = {name: _own_array(value) for name, value in kwargs.items()}
        return replaced(self.function(*positional, **named), lambda _, leaf: _as_tensor(leaf))

    def __repr__(self) -> str:
        return f"Around({getattr(self.function, '__qualname__', type(self.function).__name__)})"


def as_arrays(released: Any) -> Any:
    """Turns the tensors of an answer into arrays."""
    return replaced(released, lambda _, leaf: _as_array(leaf))


def holds_tensors(*values: Any) -> bool:
    """Says whether there is a tensor among the arguments of a call."""
    return any(isinstance(leaf, Tensor) for value in values for _, leaf in leaves(value))


def _as_array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _own_array(value: Any) -> Any:
    """Copies arrays and tables; a tensor becomes an array of its own."""
    if isinstance(value, Tensor):
        return np.array(_as_array(value))
    return value.copy() if isinstance(value, np.ndarray) or hasattr(value, "iloc") else value


def _as_tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        return value
    if value.dtype.kind not in "fciub":
        raise AnswerError(f"Expected the function to return numbers, got {value.dtype}.")
    return torch.as_tensor(np.ascontiguousarray(value))
