"""The images of a report: records that were sent, and their reconstructions."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shieldnet.findings.finding import CLASS_IMAGE

Document = Mapping[str, Any]
Images = list[str]
"""Data URIs of PNG."""


def inputs_drawn(report: Document) -> Images:
    """Draws the records that were sent, where somebody asked to see them."""
    if report["inputs"] is None or report["columns"]:
        return []
    low, high = _range(report)
    return [_png(image, low, high) for image in np.asarray(report["inputs"], dtype=float)]


def read_from(report: Document, subject: Document) -> Images:
    """Draws what the best decoder makes of the answers about these records."""
    if report["inputs"] is None or report["columns"] or subject["reconstructions"] is None:
        return []
    low, high = _range(report)
    return [_png(image, low, high) for image in np.asarray(subject["reconstructions"], dtype=float)]


def class_images(report: Document, subject: Document) -> Images:
    """Draws what the best search made of each class."""
    images = [
        np.asarray(values, dtype=float)
        for name, values in subject["features"].items()
        if name.startswith(CLASS_IMAGE)
    ]
    if report["columns"] or not images:
        return []
    low, high = float(np.min(images)), float(np.max(images))
    return [_png(image, low, high) for image in images]


def leak_map(report: Document, subject: Document) -> str:
    """Draws the share of each pixel that leaks; "" where there is none."""
    return "" if report["columns"] else _heat(subject["features"].get("leak map"), 1.0)


def null_map(report: Document) -> str:
    """Draws how much each pixel varies at all, with which every leak map is compared."""
    if report["columns"]:
        return ""
    maps = (subject["features"].get("null map") for subject in report["subjects"])
    return _heat(next((values for values in maps if values is not None), None), None)


def _heat(values: Any, most: float | None) -> str:
    if values is None:
        return ""
    image = np.asarray(values, dtype=float)
    return _png(image, 0.0, float(image.max()) if most is None else most, "inferno")


def _range(report: Document) -> tuple[float, float]:
    inputs = np.asarray(report["inputs"], dtype=float)
    return float(inputs.min()), float(inputs.max())


def _png(image: NDArray[np.float64], low: float, high: float, colors: str = "gray") -> str:
    """Encodes an image, (height, width) or (channels, height, width), as a data URI."""
    from matplotlib.image import imsave

    while image.ndim > 3:  # frames, slices: their mean
        image = image.mean(0)
    if image.ndim == 3 and image.shape[0] in (3, 4):
        image = np.clip((np.moveaxis(image, 0, -1) - low) / max(high - low, 1e-12), 0, 1)
    elif image.ndim == 3:
        image = image.mean(0)
    buffer = io.BytesIO()
    imsave(buffer, image, cmap=colors, vmin=low, vmax=max(high, low + 1e-12), format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
