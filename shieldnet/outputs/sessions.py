"""ONNX Runtime sessions, recognized by their methods, without importing the library."""

from collections.abc import Mapping, Sequence
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
    """Calls an ``InferenceSession`` for its floating-point outputs: one, or a dict by their names.

    It takes an array for each input, by position, by name or in a dict. Floating-point arrays are
    cast to the dtype of the input.
    Errors: ConfigError for a session without such an output.
    """

    def __init__(self, session: Any) -> None:
        super().__init__(session.run)
        self.session = session
        outputs = session.get_outputs()
        self.outputs = [output.name for output in outputs if output.type in _FLOATS]
        if not self.outputs:
            listed = ", ".join(f"{output.name} ({output.type})" for output in outputs)
            raise ConfigError(
                "Expected a session with an output that is a tensor of floating-point numbers, "
                f"got {listed}. Export a scikit-learn model with options={{'zipmap': False}}."
            )
        self.function = self._ask

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the session itself, all of whose outputs are returned as they are."""
        return self.session.run(*args, **kwargs)

    def get_inputs(self) -> Any:
        """Lists the inputs of the session."""
        return self.session.get_inputs()

    def get_outputs(self) -> Any:
        """Lists the outputs of the session."""
        return self.session.get_outputs()

    @property
    def dtype(self) -> torch.dtype | None:
        """Returns the float dtype of its first input, or None if that is not floating point."""
        return _FLOATS.get(self.session.get_inputs()[0].type)

    @property
    def name(self) -> str:
        """Returns the name of the session's class."""
        return type(self.session).__name__

    def __repr__(self) -> str:
        return f"Session({', '.join(self._names)} -> {', '.join(self.outputs)})"

    @property
    def _names(self) -> Sequence[str]:
        return [entry.name for entry in self.session.get_inputs()]

    def _ask(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], Mapping) and not kwargs:
            return self._ask(**args[0])
        given = dict(zip(self._names, args, strict=False)) | kwargs
        if len(args) > len(self._names) or set(given) != set(self._names):
            raise AnswerError(
                f"Expected an array for each input of the session ({', '.join(self._names)}), got "
                f"{len(args)} arrays{' and ' if kwargs else ''}{', '.join(kwargs)}."
            )
        types = {entry.name: entry.type for entry in self.session.get_inputs()}
        cast = {name: _cast(value, _FLOATS.get(types[name])) for name, value in given.items()}
        found = self.session.run(self.outputs, cast)
        return found[0] if len(found) == 1 else dict(zip(self.outputs, found, strict=True))


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
