"""Images in a folder with one subfolder per class."""

import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shieldnet.core.checks import optional
from shieldnet.core.errors import DataError
from shieldnet.files.sizes import MAX_FILES, inside, require_bytes

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_GREY = ("1", "L", "I;16")
_BYTES = 4  # of a float32


def read_images(folder: Path, role: str) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """Reads ``folder/class/image.png`` for all classes; returns images and class names.

    Shapes: -> (rows, channels, height, width) from 0 to 1, one channel if all are gray; (rows,).
    Errors: DataError for a link that leads out of the folder, a file that is not an image, a class
        without images, images of different sizes, and too much data.
    """
    files = list(_files(folder, role))
    if not files:
        raise DataError(f"Expected {folder}/CLASS/IMAGE.png for the {role}, got no image.")
    seen = [_header(path) for path, _ in files]
    sizes = {size for size, _ in seen}
    if len(sizes) > 1:
        shown = ", ".join(f"{width} x {height}" for width, height in sorted(sizes)[:3])
        raise DataError(f"Expected images of one size in {folder}, got {shown}: resize them.")
    (width, height), is_grey = seen[0][0], all(grey for _, grey in seen)
    channels = 1 if is_grey else 3
    require_bytes(len(files) * channels * width * height * _BYTES, folder, role)
    inputs = np.empty((len(files), channels, height, width), np.float32)
    for row, (path, _) in enumerate(files):
        inputs[row] = _decoded(path, is_grey, (width, height))
    return inputs, np.asarray([name for _, name in files])


def _files(folder: Path, role: str) -> Iterator[tuple[Path, str]]:
    classes = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    count = 0
    for class_folder in classes:
        before = count
        if not inside(folder, class_folder):
            raise DataError(
                f"{class_folder} is a link that leads out of {folder}, which is not followed."
            )
        if not class_folder.is_dir():
            raise DataError(
                f"Expected a folder for each class in {folder}, got {class_folder.name}."
            )
        for path in sorted(class_folder.iterdir()):
            if path.name.startswith("."):
                continue
            if not inside(folder, path):
                raise DataError(
                    f"{path} is a link that leads out of {folder}, which is not followed."
                )
            if path.suffix.lower() not in _ENDINGS or not path.is_file():
                shown = f"{class_folder.name}/{path.name}"
                raise DataError(f"Expected {', '.join(_ENDINGS)} among the {role}, got {shown}.")
            count += 1
            if count > MAX_FILES:
                raise DataError(f"{folder} has more than {MAX_FILES} images.")
            yield path, class_folder.name
        if count == before:
            raise DataError(
                f"{class_folder} contains no image of the {role}: a class without images, or an "
                "unrelated folder. Remove it."
            )


def _header(path: Path) -> tuple[tuple[int, int], bool]:
    with _opened(path) as image:
        size: tuple[int, int] = image.size
        return size, image.mode in _GREY


def _decoded(path: Path, is_grey: bool, size: tuple[int, int]) -> NDArray[np.float32]:
    """Shapes: -> (channels, height, width)."""
    try:
        with _opened(path) as image:
            if image.size != size:
                raise DataError(f"{path} changed while it was being read.")
            if image.mode == "I;16":
                return np.asarray(image, np.float32)[None] / np.float32(65535)
            plain = image.convert("L" if is_grey else "RGB")
            pixels = np.asarray(plain, np.float32) / np.float32(255)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError) as broken:
        if isinstance(broken, DataError):
            raise
        raise DataError(f"{path} is a damaged image: {broken}") from broken
    return pixels[None] if is_grey else pixels.transpose(2, 0, 1)


def _opened(path: Path) -> Any:
    """Opens an image of a common format without decoding its pixels."""
    pil = optional("PIL.Image", extra="data")
    with warnings.catch_warnings():
        warnings.simplefilter("error", pil.DecompressionBombWarning)
        try:
            return pil.open(path, formats=_FORMATS)
        except (
            OSError,
            SyntaxError,
            ValueError,
            EOFError,
            struct.error,
            OverflowError,
            pil.DecompressionBombError,
            pil.DecompressionBombWarning,
        ) as broken:
            raise DataError(f"{path} is not a readable image: {broken}") from broken
