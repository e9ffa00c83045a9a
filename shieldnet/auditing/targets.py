"""Images and their true boxes, in the forms in which users have them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from shieldnet.core.errors import DataError
from shieldnet.data.examples import Examples
from shieldnet.outputs.nested import is_list_of_dicts

Target = Mapping[str, Tensor]
CORNERS = "x and y of the upper left corner, and of the lower right one, in pixels: x1, y1, x2, y2"
_CHANNELS = (1, 3, 4)


def parted(value: Any, role: str) -> tuple[Any, list[Target] | None]:
    """Parts images and targets; of what is no detection there are none."""
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    if is_pair and isinstance(value[1], tuple | list):
        targets = list(value[1])  # a tuple, as of zip(*batch)
        if targets and is_list_of_dicts(targets):
            return _stacked(value[0], role), targets
    rows: Any = value.dataset if isinstance(value, DataLoader) else value
    is_rows = hasattr(rows, "__getitem__") and hasattr(rows, "__len__")
    if is_rows and not isinstance(rows, Mapping | Tensor | np.ndarray) and len(rows):
        first = None if hasattr(rows, "iloc") else rows[0]
        if isinstance(first, tuple | list) and len(first) == 2 and is_list_of_dicts([first[1]]):
            pairs = [rows[row] for row in range(len(rows))]
            return _stacked([image for image, _ in pairs], role), [own for _, own in pairs]
    return value, None


def _stacked(images: Any, role: str) -> Any:
    if not isinstance(images, tuple | list):
        return images
    for image in images:
        if not isinstance(image, Tensor | np.ndarray):
            raise DataError(
                f"Expected the images of the {role} as tensors or arrays, got "
                f"{type(image).__module__}.{type(image).__name__}. Convert them as for the model, "
                "such as by torchvision.transforms.functional.to_tensor."
            )
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) != 1:
        raise DataError(
            f"Expected the images of the {role} in one shape, got {len(shapes)}, such as "
            f"{shapes[0]} and {shapes[-1]}. Resize or pad them, and their boxes."
        )
    return torch.stack([torch.as_tensor(image) for image in images])


def size_of(examples: Examples) -> tuple[int, int]:
    """Returns height and width of the images. Errors: DataError for channels that come last."""
    shape = tuple(examples.inputs.shape[1:])
    if len(shape) == 3 and shape[-1] in _CHANNELS and shape[0] not in _CHANNELS:
        raise DataError(
            f"Expected images of shape (channels, height, width), got {shape}, whose channels are "
            "the last axis. Pass images.permute(0, 3, 1, 2), and put a model that reads channels "
            "last into a module that permutes them back."
        )
    if len(shape) not in (2, 3):
        raise DataError(f"Expected images of shape (channels, height, width), got {shape}.")
    height, width = shape[-2:]
    return height, width


def checked(given: Sequence[Mapping[str, Any]], examples: Examples) -> list[Target]:
    """Returns targets as tensors; raises DataError for what is no box for each image."""
    role = examples.name
    if len(given) != len(examples):
        raise DataError(
            f"Expected a dict of boxes for each of the {len(examples)} images of the {role}, got "
            f"{len(given)}."
        )
    return [_checked(target, f"row {row} of the {role}") for row, target in enumerate(given)]


def _checked(target: Mapping[str, Any], where: str) -> Target:
    boxes, labels = _tensor(target.get("boxes")), _tensor(target.get("labels"))
    if boxes is not None and not boxes.numel():
        boxes = boxes.reshape(0, 4)  # an empty list
    if boxes is None or boxes.shape[1:] != (4,) or not torch.isfinite(boxes).all():
        raise DataError(
            f"Expected boxes of shape (boxes, 4) in every target, {CORNERS}, finite; {where} has "
            f"{_described(boxes)}."
        )
    if labels is None:
        return {"boxes": boxes}
    labels = labels.long() if not labels.numel() else labels
    if labels.shape != boxes.shape[:1] or labels.is_floating_point():
        raise DataError(
            f"Expected a whole-number label for each box; {where} has {len(boxes)} boxes and "
            f"labels of {labels.dtype}, shape {tuple(labels.shape)}."
        )
    return {"boxes": boxes, "labels": labels.long()}


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, list | tuple):
        try:
            value = np.asarray(value)
        except ValueError:  # rows of unequal length
            return None
        if value.dtype.kind not in "iufb":
            return None
    is_array = isinstance(value, Tensor | np.ndarray)
    return torch.as_tensor(value).detach().cpu() if is_array else None


def _described(boxes: Tensor | None) -> str:
    if boxes is None:
        return "none that are numbers"
    if boxes.shape[1:] != (4,):
        return f"shape {tuple(boxes.shape)}"
    return str(boxes[~torch.isfinite(boxes).all(1)][0].tolist())
