"""Examples in an .npz file: arrays x and y, or a model's inputs by their names, and labels."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shieldnet.core.errors import DataError
from shieldnet.files.arrays import array_names, read_npz

LABELS = ("labels", "label", "y", "target")
"""How the array of labels may be called, but for ``--label``."""
TEXTS = {"input_ids", "tokens"}
"""How the array of texts may be called, whose labels are their next tokens."""
_UNNAMED = re.compile(r"arr_\d+")  # as numpy.savez calls arrays without names

Arrays = dict[str, NDArray[Any]]


def read_named(
    name: str, role: str, label: str | None, groups: Sequence[str]
) -> tuple[NDArray[Any] | Arrays, NDArray[Any] | None, tuple[str, ...], Arrays]:
    """Reads inputs, labels, names of columns (none) and groups.

    Beside labels, one array is the input, and several are the inputs that a model takes by these
    names. Where there is an x, it is the input whatever else there is.
    Errors: DataError, with the arrays that there are, where none can be told to be inputs.
    """
    path = Path(name)
    names = array_names(path, role)
    listed = ", ".join(sorted(names))
    known = LABELS if label is None else (label,)
    own_label = next((candidate for candidate in known if candidate in names), None)
    beside = (*([own_label] if own_label else []), *groups)
    arrays = read_npz(path, role, ("x", *beside) if "x" in names else None)
    missing = [group for group in groups if group not in arrays]
    if missing:
        raise DataError(f"{name} has no array {', '.join(missing)} for --group. It has: {listed}.")
    if label is not None and own_label is None:
        raise DataError(f"{name} has no array {label} for --label. It has: {listed}.")
    inputs = {key: array for key, array in arrays.items() if key not in beside}
    labels = None if own_label is None else arrays[own_label]
    of_groups = {group: arrays[group] for group in groups}
    if "x" in inputs:
        return inputs["x"], labels, (), of_groups
    is_told = labels is not None or len(inputs) > 1 or inputs.keys() <= TEXTS
    if not inputs or not is_told or any(map(_UNNAMED.fullmatch, inputs)):
        raise DataError(
            f"Expected arrays x and y in {name}, or the model's inputs by their names beside "
            f"labels; got: {listed or 'none'}. Write them so: numpy.savez({path.name!r}, "
            "input_ids=..., attention_mask=..., labels=...), or name the labels with --label."
        )
    return next(iter(inputs.values())) if len(inputs) == 1 else inputs, labels, (), of_groups


def narrow(inputs: NDArray[Any] | Arrays) -> Any:
    """Returns wider real numbers as float32, each of several inputs by itself."""
    if isinstance(inputs, dict):
        return {name: narrow(array) for name, array in inputs.items()}
    is_wide = inputs.dtype.kind == "f" and inputs.dtype.itemsize > 4
    return inputs.astype(np.float32) if is_wide else inputs
