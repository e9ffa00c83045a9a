"""Validation of settings when a value is created, so that an invalid value never exists."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

from shieldnet.core.errors import ConfigError, MissingDependency

T = TypeVar("T")


def whole(name: str, value: object, *, low: int, high: int | None = None) -> int:
    """Returns ``value`` if it is an integer in [low, high]; raises ConfigError if not."""
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and low <= value <= (value if high is None else high)
    ):
        return value
    limits = f"{name} >= {low}" if high is None else f"{name} from {low} to {high}"
    raise ConfigError(f"Expected {limits} (a whole number), got {name}={value!r}.")


def positive(name: str, value: object) -> float:
    """Returns ``value`` as a float if it is finite and above 0; raises ConfigError if not."""
    number = _number(value)
    if not (number > 0 and math.isfinite(number)):
        raise ConfigError(f"Expected a finite {name} > 0, got {name}={value!r}.")
    return number


def finite(name: str, value: object) -> float:
    """Returns ``value`` as a float if it is a finite number; raises ConfigError if not."""
    number = _number(value)
    if not math.isfinite(number):
        raise ConfigError(f"Expected a finite {name}, got {name}={value!r}.")
    return number


def flag(name: str, value: object) -> bool:
    """Returns ``value`` if it is True or False; raises ConfigError if not."""
    if not isinstance(value, bool):
        raise ConfigError(f"Expected {name} to be true or false, got {value!r}.")
    return value


def fraction(name: str, value: object) -> float:
    """Returns ``value`` as a float if it lies in [0, 1]; raises ConfigError if not."""
    number = _number(value)
    if not 0 <= number <= 1:
        raise ConfigError(f"Expected {name} from 0 to 1, got {name}={value!r}.")
    return number


def choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Returns ``value`` if it is one of ``choices``; raises ConfigError if not."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"Expected {name} to be one of {', '.join(choices)}; got {value!r}.")
    return value


def install_line(extra: str) -> str:
    """Returns the command that installs an extra, in a clone of the source."""
    return f"pip install -c constraints.txt -e '.[{extra}]'"


def optional(module: str, *, extra: str) -> ModuleType:
    """Imports an optional package, or raises MissingDependency with the install command."""
    try:
        return import_module(module)
    except ImportError as missing:
        raise MissingDependency(
            f"The package {module.split('.')[0]} is required and not installed. It comes with the "
            f"extra {extra}, in your clone of shieldnet: {install_line(extra)}"
        ) from missing


def quietly(module: str) -> ModuleType:
    """Imports a module and removes the handlers that it adds to the root logger (Opacus does)."""
    import logging

    handlers = logging.root.handlers[:]
    loaded = import_module(module)
    logging.root.handlers[:] = handlers
    return loaded


@contextmanager
def unwarned(*beginnings: str) -> Iterator[None]:
    """Silences warnings whose messages start with any of ``beginnings``."""
    with warnings.catch_warnings():
        for beginning in beginnings:
            warnings.filterwarnings("ignore", message=beginning)
        yield


def _number(value: object) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return float(value) if is_number else math.nan  # type: ignore[arg-type]  # narrowed above
    except OverflowError:
        return math.inf


def renamed(**new_names: str) -> Callable[[T], T]:
    """Makes a function or class refuse former names of its settings, naming the new ones.

    new_names: new name by old name. Errors: ConfigError from the call.
    """

    def decorate(target: T) -> T:
        if isinstance(target, type):
            target.__init__ = _refusing(target.__init__, target.__name__, new_names)  # type: ignore[misc]  # on purpose
            return target
        refusing: T = _refusing(target, target.__name__, new_names)  # type: ignore[attr-defined]  # a function
        return refusing

    return decorate


def _refusing(function: Any, name: str, new_names: Mapping[str, str]) -> Any:
    @wraps(function)
    def checked(*args: Any, **settings: Any) -> Any:
        for old, new in new_names.items():
            if old in settings:
                raise ConfigError(f"{name} has no setting {old}: it is now called {new}.")
        return function(*args, **settings)

    return checked
