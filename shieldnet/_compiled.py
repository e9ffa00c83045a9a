"""Steps that a compiler must call as they are: refusals, ties, draws of noise."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def opaque(
    shapes: Callable[Arguments, Result],
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Registers a function as one operation of torch, so that ``fullgraph=True`` keeps it whole.

    shapes: returns empty tensors of the shapes and types that the function gives. Eager calls go
    straight to the function: an operation of torch costs ten times more to dispatch.
    """

    def register(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        name = f"shieldnet::{function.__name__.lstrip('_')}"
        operation = torch.library.custom_op(name, function, mutates_args=())
        operation.register_fake(shapes)

        @wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            if torch.compiler.is_compiling():
                compiled: Result = operation(*args, **kwargs)
                return compiled
            return function(*args, **kwargs)

        return call

    return register
