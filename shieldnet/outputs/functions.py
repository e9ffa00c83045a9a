"""Models that are functions from arrays to arrays."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.outputs.nested import leaves, replaced


class Around(nn.Module):
    """Calls a function of numpy arrays, such as scikit-learn's ``predict_proba``.

    Tensors in the arguments become arrays, and arrays in the result become tensors. The function
    gets copies that it may change, as pipelines that scale in place do.
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
        """Returns the function's result as tensors."""
        return replaced(self.asked(args, kwargs), lambda _, leaf: as_tensor(leaf))

    def asked(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> Any:
        """Returns what the function returns, as it is."""
        positional = [_own_array(value) for value in args]
        named = {name: _own_array(value) for name, value in kwargs.items()}
        return self.function(*positional, **named)

    @property
    def name(self) -> str:
        """Returns the name of the function."""
        qualified = str(getattr(self.function, "__qualname__", type(self.function).__name__))
        return qualified.rpartition("<locals>.")[2]

    def __repr__(self) -> str:
        return f"Around({self.name})"


def as_arrays(released: Any) -> Any:
    """Converts the tensors of an answer to arrays."""
    return replaced(released, lambda _, leaf: _as_array(leaf))


def holds_tensors(*values: Any) -> bool:
    """Returns whether any argument of a call is or contains a tensor."""
    return any(isinstance(leaf, Tensor) for value in values for _, leaf in leaves(value))


def _as_array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _own_array(value: Any) -> Any:
    """Copies arrays and tables; converts a tensor to a new array."""
    if isinstance(value, Tensor):
        return np.array(_as_array(value))
    return value.copy() if isinstance(value, np.ndarray) or hasattr(value, "iloc") else value


def as_tensor(value: Any) -> Any:
    """Converts an array to a tensor. Errors: AnswerError for one that holds no numbers."""
    if not isinstance(value, np.ndarray | np.generic):
        return value
    if value.dtype.kind not in "fciub":
        raise AnswerError(f"Expected the function to return numbers, got {value.dtype}.")
    array = np.ascontiguousarray(value)
    return torch.as_tensor(array if array.flags.writeable else array.copy())
