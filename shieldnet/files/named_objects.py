"""Objects by their names on the command line, ``package.module:name``, of the user's own code."""

import importlib
import sys
from collections.abc import Callable
from inspect import isfunction, signature
from pathlib import Path
from typing import Any

from torch import nn

from shieldnet.core.errors import DataError
from shieldnet.outputs.estimators import is_estimator


def called(name: str, expected: str, hint: str = "") -> Any:
    """Returns the object ``package.module:name``; of a function, what it returns.

    expected: begins a refusal. hint: ends that of a function with arguments, whose name it takes.
    Errors: DataError for what cannot be imported, or raises.
    """
    factory = named(name, expected)
    is_made = isinstance(factory, nn.Module) or is_estimator(factory)
    if isfunction(factory) and not _takes_nothing(factory):
        raise DataError(
            f"{expected}; {name} cannot be called without arguments: it takes "
            f"{signature(factory, follow_wrapped=False)}.{hint.format(name.partition(':')[2])}"
        )
    try:  # user code can raise anything
        return factory() if callable(factory) and not is_made else factory
    except Exception as failed:
        raise _unloadable(name, expected, failed) from failed


def _takes_nothing(function: Callable[..., Any]) -> bool:
    """Returns whether a function can be called without arguments; a decorator may give them."""
    try:
        signature(function, follow_wrapped=False).bind()
    except TypeError:
        return False
    return True


def named(name: str, expected: str) -> Any:
    """Returns the object ``package.module:name``, as it is. Errors: DataError without one."""
    module_name, _, attribute = name.partition(":")
    if not (module_name and attribute):
        raise DataError(f"{expected}; got {name!r}.")
    here = str(Path.cwd())
    if sys.path[:1] != [here]:  # before an installed package of the same name
        sys.path.insert(0, here)
    try:  # importing runs user code
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as failed:
        raise _unloadable(name, expected, failed) from failed


def _unloadable(name: str, expected: str, failed: Exception) -> DataError:
    reason = f"{type(failed).__name__}: {failed}"
    return DataError(f"{expected}; cannot load {name!r}: {reason}")
