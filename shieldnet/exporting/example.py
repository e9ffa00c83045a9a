"""The example of an export: the model's arguments by name, and what the shield answers to them."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shieldnet.core.errors import AnswerError, ConfigError, ShieldnetError
from shieldnet.exporting.words import first_line
from shieldnet.outputs.nested import leaves, written
from shieldnet.shield.module import Shield

_DRAWN_ROWS = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)
"""Sizes of the batch that a graph is drawn with, whatever the example's: a file tells neither."""


@dataclass(frozen=True)
class Example:
    """Holds the arguments that a model is asked with.

    given: the arguments by name. positional: names of those given by position. rows: of the batch,
    which is the first axis of each tensor with as many rows as the first one. dynamic: further axes
    of any size, by argument and index, with names of their sizes.
    """

    given: dict[str, Tensor]
    positional: tuple[str, ...]
    rows: int
    dynamic: Mapping[str, Mapping[int, str]]

    @classmethod
    def of(
        cls, model: nn.Module, example: Any, dynamic: Mapping[str, Mapping[int, str]] | None = None
    ) -> "Example":
        """Reads an example: a tensor, a tuple of arguments or a dict of named ones.

        Arrays become tensors.
        Errors: ConfigError for arguments that are not tensors or that do not fit the model's
            ``forward``, for fewer than two rows, and for dynamic axes that it does not have.
        """
        args, kwargs = _arguments(example)
        given = _named(model, args, kwargs)
        for name, value in given.items():
            if not isinstance(value, Tensor):
                raise ConfigError(
                    f"Expected tensors in the example, got {name} as {type(value).__name__}: its "
                    "value would be fixed in the file. Leave it out and make it the default in the "
                    f"model's forward, or export a module whose forward passes {name} on."
                )
        free = {} if dynamic is None else dynamic
        read = cls(given, tuple(given)[: len(args)], _rows(given), free)
        _require_axes(read)
        return read

    def is_batched(self, value: Tensor) -> bool:
        """Returns whether the first axis of a tensor is the batch."""
        return value.dim() > 0 and len(value) == self.rows

    def sizes(self, value: Tensor) -> tuple[int | str, ...]:
        """Returns the sizes of an argument: numbers, and names of those that may change."""
        sizes: list[int | str] = list(value.shape)
        if self.is_batched(value):
            sizes[0] = "batch"
        for axis, size in self._free(value).items():
            sizes[axis] = size
        return tuple(sizes)

    def _free(self, value: Tensor) -> Mapping[int, str]:
        name = next(name for name, one in self.given.items() if one is value)
        return self.dynamic.get(name, {})

    def shorter(self) -> "Example":
        """Returns the example with one entry less along every dynamic axis."""
        given = dict(self.given)
        for name, axes in self.dynamic.items():
            for axis in axes:
                given[name] = given[name].narrow(axis, 0, given[name].shape[axis] - 1)
        return replace(self, given=given)

    def first(self, count: int) -> dict[str, Tensor]:
        """Returns the arguments with the first rows of the batch only."""
        return {
            name: value[:count] if self.is_batched(value) else value
            for name, value in self.given.items()
        }

    def for_drawing(self) -> "Example":
        """Returns an example whose number of rows depends on the other sizes only."""
        sizes = {
            size
            for value in self.given.values()
            for size in value.shape[1 if self.is_batched(value) else 0 :]
        }
        rows = next((rows for rows in _DRAWN_ROWS if rows not in sizes), _DRAWN_ROWS[0])
        places = torch.arange(rows) % self.rows
        given = {
            name: value[places.to(value.device)] if self.is_batched(value) else value
            for name, value in self.given.items()
        }
        return replace(self, given=given, rows=rows)

    def call(self, inputs: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Returns inputs as the arguments of a call, in the form of the example."""
        named = dict(inputs)
        return tuple(named.pop(name) for name in self.positional), named


@dataclass(frozen=True)
class Asked:
    """Holds a new shield of the same model and settings that has answered the example.

    fields: names of the tensors that it released, in their order; none is that of an input.
    """

    shield: Shield
    fields: tuple[str, ...]

    @classmethod
    def of(cls, shield: Shield, example: Example) -> "Asked":
        """Asks about the example.

        Errors: AnswerError for all that the shield refuses: rows that change each other, another
            extent, another kind of output. ConfigError where the model fails, or where the example
            has no two different rows.
        """
        trial, mode = shield.trial, shield.layers.mode(shield.model)
        if trial.refused is not None and trial.mode == mode:
            raise AnswerError(trial.refused)
        new = shield.with_model(shield.model)
        answer = answered(new, example, example.given)
        new.trial.require_tried()
        found = [path for path, leaf in leaves(answer) if isinstance(leaf, Tensor)]
        fields = [written(path) if path else "answer" for path in found]
        names = [f"released_{name}" if name in example.given else name for name in fields]
        return cls(new, tuple(names))


def answered(shield: Shield, example: Example, inputs: Mapping[str, Tensor]) -> Any:
    """Asks a shield. Errors: its own, and ConfigError where the model fails."""
    args, kwargs = example.call(inputs)
    try:
        return shield(*args, **kwargs)
    except ShieldnetError:
        raise
    except Exception as failed:  # the model's own: whatever it raises
        rows = len(next(value for value in inputs.values() if value.dim()))
        raise ConfigError(
            f"The model fails on a batch of {rows} rows of the example: {first_line(failed)} An "
            "exported graph takes batches of any size."
        ) from failed


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), {name: _as_tensor(value) for name, value in example.items()}
    return tuple(map(_as_tensor, example if isinstance(example, tuple) else (example,))), {}


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def _named(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of an example by the names that the model gives them."""
    parameters = inspect.signature(model.forward).parameters
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as unfit:
        raise ConfigError(
            f"Expected an example as the model's arguments: {unfit}. Give a tensor, a tuple of "
            "arguments or a dict of named ones."
        ) from unfit
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    for name in bound.arguments:
        if parameters[name].kind in several:
            raise ConfigError(
                f"Expected a model whose forward names its inputs, got *{name}: a graph's inputs "
                "need names. Write def forward(self, x)."
            )
        if parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            return {
                **{key: bound.arguments[key] for key in bound.arguments if key != name},
                **kwargs,
            }
    return dict(bound.arguments)


def _require_axes(example: Example) -> None:
    """Raises ConfigError for dynamic axes that an example does not have, or cannot vary."""
    found: dict[str, int] = {}
    for name, axes in example.dynamic.items():
        dims = example.given[name].dim() if name in example.given else 0
        for axis, size in axes.items():
            if not (isinstance(size, str) and size.isidentifier() and size != "batch"):
                raise ConfigError(f"Expected a name such as 'length' for a size, got {size!r}.")
            if type(axis) is not int or not 0 < axis < dims:
                raise ConfigError(
                    f"Expected dynamic as {{input: {{axis: name of its size}}}}, the batch left "
                    f"out, got axis {axis!r} of {name}. The inputs are {', '.join(example.given)}."
                )
            length = example.given[name].shape[axis]
            if length < 3 or found.setdefault(size, length) != length:
                raise ConfigError(
                    f"Expected {size} to be one size of at least 3 in the example, got {length} "
                    f"for {name}: it is tried with one less."
                )


def _rows(given: Mapping[str, Tensor]) -> int:
    tensors = [value for value in given.values() if value.dim()]
    if not tensors or len(tensors[0]) < 2:
        raise ConfigError(
            "Expected an example of at least two rows, so that the batch is told from the other "
            "sizes. Give a few real ones: example=inputs[:8]."
        )
    return len(tensors[0])
