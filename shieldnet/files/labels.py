"""Labels in files: numbers of classes, words, or the targets of a regression."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shieldnet.core.errors import DataError


def whole_labels(labels: NDArray[Any]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Converts labels to integers, and numbers words; also returns the words."""
    if labels.dtype.kind == "U":
        names, places = np.unique(labels, return_inverse=True)
        if all(name.isdecimal() and str(int(name)) == name for name in names.tolist()):
            return labels.astype(np.int64), ()
        return places.reshape(-1).astype(np.int64), tuple(names.tolist())
    if labels.dtype.kind == "f" and ((np.abs(labels) < 2**53) & (labels == labels.round())).all():
        return labels.astype(np.int64), ()
    return labels, ()


def target_numbers(labels: NDArray[Any], name: str) -> NDArray[Any]:
    """Returns the targets of a regression, wider fractions as float32, as inputs are.

    name: of the file, for messages. Errors: DataError for words.
    """
    if labels.dtype.kind not in "iufb":
        raise DataError(
            f"Expected numbers as targets of a regression (outputs='values') in {name}, got words: "
            f"{', '.join(map(str, labels.reshape(-1)[:3]))}, ..."
        )
    return labels.astype(np.float32) if labels.dtype == np.float64 else labels
