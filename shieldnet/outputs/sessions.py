"""ONNX Runtime sessions, recognized by their methods, without importing the library."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.outputs.functions import Around

_FLOATS = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
}


class Session(Around):
    """Calls an ``InferenceSession`` with a single floating-point output.

    It takes an array for each input, by position or name. Floating-point arrays are cast to the
    dtype of the input.
    Errors: ConfigError for a session with several such outputs, or none.
    """

    def __init__(self, session: Any) -> None:
        super().__init__(session.run)
        self.session = session
        outputs = session.get_outputs()
        floats = [output.name for output in outputs if output.type in _FLOATS]
        if len(floats) != 1:
            listed = ", ".join(f"{output.name} ({output.type})" for output in outputs)
            raise ConfigError(
                f"Expected a session with one output of floating-point numbers, got {listed}. "
                "Name the one to release: Shield.around(lambda inputs: session.run(["
                f"{(floats or [outputs[0].name])[0]!r}], {{{self._names[0]!r}: inputs}})[0], ...)."
                " Export a scikit-learn model with options={'zipmap': False}."
            )
        (self.output,) = floats
        self.function = self._ask

    @property
    def dtype(self) -> torch.dtype | None:
        """Returns the float dtype of its first input, or None if that is not floating point."""
        return _FLOATS.get(self.session.get_inputs()[0].type)

    @property
    def name(self) -> str:
        """Returns the name of the session's class."""
        return type(self.session).__name__

    def __repr__(self) -> str:
        return f"Session({', '.join(self._names)} -> {self.output})"

    @property
    def _names(self) -> Sequence[str]:
        return [entry.name for entry in self.session.get_inputs()]

    def _ask(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self._names, args, strict=False)) | kwargs
        if len(args) > len(self._names) or set(given) != set(self._names):
            raise AnswerError(
                f"Expected an array for each input of the session ({', '.join(self._names)}), got "
                f"{len(args)} arrays{' and ' if kwargs else ''}{', '.join(kwargs)}."
            )
        types = {entry.name: entry.type for entry in self.session.get_inputs()}
        cast = {name: _cast(value, _FLOATS.get(types[name])) for name, value in given.items()}
        return self.session.run([self.output], cast)[0]


def is_session(model: object) -> bool:
    """Returns whether an object is an ONNX Runtime session."""
    methods = ("run", "get_inputs", "get_outputs")
    return not isinstance(model, type) and all(
        callable(getattr(model, name, None)) for name in methods
    )


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    array = np.asarray(value)
    if dtype is None or array.dtype.kind != "f":
        return array
    return array.astype(torch.empty(0, dtype=dtype).numpy().dtype)
