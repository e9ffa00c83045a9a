"""Arrays in .npz and .npy files, whose headers are validated before reading."""

import io
import math
from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from shieldnet.core.checks import unwarned
from shieldnet.core.errors import DataError
from shieldnet.files.sizes import content, opened_archive, require_bytes, require_file

_NUMBERS = "biuf"
_MAX_HEADER_CHARACTERS = 10_000  # headers of numeric arrays are shorter
_UNREADABLE = (
    EOFError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    SyntaxError,
    TokenError,
    TypeError,
    ValueError,
)


def array_names(path: Path, role: str) -> list[str]:
    """Lists the arrays that there are, none of which is read."""
    with opened_archive(path, role) as archive:
        names = (entry.filename for entry in archive.infolist())
        return [name.removesuffix(".npy") for name in names if name.endswith(".npy")]


def read_npz(path: Path, role: str, names: Iterable[str] | None) -> dict[str, NDArray[Any]]:
    """Reads the named arrays that exist; None reads all.

    Errors: DataError for anything but plain numbers (or, for groups, words), and for a size that
        differs from the file's content.
    """
    with opened_archive(path, role) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        listed = [name.removesuffix(".npy") for name in entries if name.endswith(".npy")]
        arrays = {}
        for name in listed if names is None else names:
            entry = entries.get(f"{name}.npy")
            if entry is not None:
                data = content(archive, entry)
                arrays[name] = _array(io.BytesIO(data), len(data), f"{name} in {path}")
    return arrays


def read_npy(path: Path, role: str) -> NDArray[Any]:
    """Reads the array of an .npy file."""
    size = require_file(path, role)
    require_bytes(size, path, role)
    with path.open("rb") as file:
        return _array(file, size, str(path))


def _array(file: IO[bytes], size: int, name: str) -> NDArray[Any]:
    """Reads an array whose header states the exact number of bytes."""
    try:
        version = npy.read_magic(file)
        reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        with unwarned("Reading `.npy`"):  # for headers written by Python 2
            shape, is_fortran, dtype = reader(file, max_header_size=_MAX_HEADER_CHARACTERS)
    except _UNREADABLE as broken:
        raise DataError(f"{name} is not a numpy array: {broken}") from broken
    if dtype.kind not in f"{_NUMBERS}U" or dtype.itemsize == 0:
        raise DataError(f"Expected numbers in {name}, got {dtype} (pickles are never read).")
    held, stated = size - file.tell(), math.prod(shape) * dtype.itemsize
    if any(length < 0 for length in shape) or held != stated:
        raise DataError(
            f"{name} states {stated} bytes of {dtype} in shape {shape}, but has {held}."
        )
    flat = np.frombuffer(bytearray(file.read(held)), dtype).astype(dtype.newbyteorder("="))
    try:
        return flat.reshape(shape, order="F" if is_fortran else "C")
    except (ValueError, OverflowError) as absurd:  # an axis of 0 together with a huge one
        raise DataError(f"{name} has an impossible shape: {shape}.") from absurd
