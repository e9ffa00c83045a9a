"""Models and data from the names that a command line gets; nothing is ever unpickled."""

import importlib
import json
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shieldnet._validate import optional
from shieldnet.data import Examples, as_examples
from shieldnet.errors import DataError
from shieldnet.training.accountant import Guarantee

# A lone .npy array under another name has no ``files`` and is no context: the last two.
_UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    AttributeError,
    TypeError,
)
_MODEL_HELP = "Expected MODEL as package.module:factory, a function that returns an nn.Module"


def load_model(name: str, weights: str | None = None) -> nn.Module:
    """Makes the model of ``package.module:factory`` and loads its weights, in evaluation mode.

    weights: a .safetensors file, or a .pt file read with ``weights_only=True``. The module is
    looked for on the path and in the working folder; importing it runs its code.
    """
    model = _call(name, _MODEL_HELP)
    if not isinstance(model, nn.Module):
        raise DataError(f"{_MODEL_HELP}; {name} returned {type(model).__name__}.")
    if weights is not None:
        try:
            model.load_state_dict(_read_weights(Path(weights)))
        except RuntimeError as unfit:
            raise DataError(f"{weights} does not fit the model of {name}: {unfit}") from unfit
    return model.eval()


def load_object(name: str, role: str, *, call: bool = False) -> Any:
    """Returns what ``package.module:name`` names, or with ``call`` what it returns."""
    expected = f"Expected {role} as package.module:name"
    return _call(name, expected) if call else _named(name, expected)


def load_examples(name: str, role: str) -> Examples:
    """Reads examples from an .npz file with arrays x and y, or from ``package.module:factory``.

    y may be missing where labels are not needed. role: what the examples are, for messages.
    """
    if name.endswith(".npz"):
        return _read_npz(Path(name), role)
    if ":" in name:
        return as_examples(_call(name, f"Expected the {role} as a function's result"), role)
    raise DataError(
        f"Expected the {role} as an .npz file with arrays x and y, or as package.module:factory; "
        f"got {name!r}."
    )


def load_training(name: str) -> Any:
    """Reads what to train on: an .npz file with arrays x and y, or ``package.module:factory``."""
    if not name.endswith(".npz"):
        return _call(name, "Expected the data as an .npz file or as package.module:factory")
    found = _arrays(Path(name), "data")
    if "y" not in found:
        raise DataError(f"Expected arrays x and y in {name}, got x alone.")
    return found["x"], found["y"]


def load_guarantee(path: Path) -> Guarantee:
    """Reads a guarantee that ``finetune`` wrote; its epsilon is computed anew, not believed."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Guarantee.read(document)
    except OSError as missing:
        raise DataError(f"Cannot read {path}: {missing.strerror}.") from missing
    except (ValueError, KeyError, TypeError) as broken:
        raise DataError(f"{path} is no guarantee as finetune writes it: {broken!r}") from broken


def _call(name: str, expected: str) -> Any:
    factory = _named(name, expected)
    try:  # the user's own code: whatever it raises is theirs to mend
        return factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    except Exception as failed:
        raise _unloadable(name, expected, failed) from failed


def _named(name: str, expected: str) -> Any:
    module_name, _, attribute = name.partition(":")
    if not (module_name and attribute):
        raise DataError(f"{expected}; got {name!r}.")
    here = str(Path.cwd())
    if sys.path[:1] != [here]:  # before an installed package of the same name
        sys.path.insert(0, here)
    try:  # importing runs the user's own code
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as failed:
        raise _unloadable(name, expected, failed) from failed


def _unloadable(name: str, expected: str, failed: Exception) -> DataError:
    reason = f"{type(failed).__name__}: {failed}"
    return DataError(f"{expected}; cannot load {name!r}: {reason}")


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"Cannot read {path}: there is no such file.")
    if path.suffix == ".safetensors":
        reader = optional("safetensors.torch", extra="cli")
        try:
            state: dict[str, Tensor] = reader.load_file(path)
        except Exception as broken:
            raise DataError(f"{path} is no valid safetensors file: {broken}") from broken
        return state
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as refused:
        raise DataError(
            f"{path} holds more than weights, or is damaged; it is not unpickled. "
            "Save model.state_dict() with safetensors."
        ) from refused
    if not isinstance(loaded, dict):
        raise DataError(f"Expected a state_dict in {path}, got {type(loaded).__name__}.")
    return loaded


def _read_npz(path: Path, role: str) -> Examples:
    arrays = _arrays(path, role)
    if "y" in arrays:
        return as_examples((arrays["x"], arrays["y"]), role)
    return as_examples(arrays["x"], role)


def _arrays(path: Path, role: str) -> dict[str, NDArray[Any]]:
    """Reads the arrays x and, if there is one, y."""
    if not path.is_file():
        raise DataError(f"Cannot read the {role} from {path}: there is no such file.")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("x", "y") if name in archive.files}
    except _UNREADABLE as broken:
        raise DataError(
            f"{path} is no plain .npz file (truncated, or pickled, which is never read): {broken}"
        ) from broken
    if "x" not in arrays:
        raise DataError(f"Expected arrays x and y in {path}.")
    if arrays["x"].dtype == np.float64:  # numpy's default; models are float32 by theirs
        arrays["x"] = arrays["x"].astype(np.float32)
    return arrays
