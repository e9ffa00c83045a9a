"""A detector's answer as numbers: every box in its released order, and how many there are."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

MAX_BOXES = 32
"""Boxes of an image that are read one by one; of more, sums over all are read."""
_COLUMNS = 7  # of a box: that it is there, two corners, its score, its label
_COUNTS = 3  # of boxes: without a score, without an area, outside of the image
WIDTH = (MAX_BOXES + 2) * _COLUMNS + _COUNTS
_SCALES = (1.0, 10.0, 100.0, 1000.0)


class Painted(NamedTuple):
    """Holds what was released about images, as maps and as numbers.

    Shapes: maps (images, *positions, classes), numbers (images, WIDTH) float64.
    """

    maps: Tensor
    numbers: Tensor


def numbers_in(released: object) -> Tensor | None:
    """Returns the numbers beside maps, of a detector; None of other answers."""
    return released.numbers if isinstance(released, Painted) else None


def numbers_of(
    boxes: Tensor | None, scores: Tensor | None, labels: Tensor | None, size: tuple[int, int]
) -> Tensor:
    """Lays one answer flat: boxes in their order, filled up with zeros, then what all are together.

    Together: sums, in how many steps from a box to the next each number falls, and counts of boxes
    that paint nothing. What is not released is zero.
    size: (height, width) of the image.
    Shapes: boxes (n, 4), scores (n,), labels (n,) -> (WIDTH,) float64.
    """
    count = next(len(part) for part in (boxes, scores, labels) if part is not None)
    corners, chances, kinds = (
        torch.zeros(count, columns).double()
        if part is None
        else part.double().nan_to_num(0.0).reshape(count, columns)
        for part, columns in ((boxes, 4), (scores, 1), (labels, 1))
    )
    each = torch.cat([torch.ones(count, 1).double(), corners, chances, kinds], 1)
    low, high = corners[:, :2], corners[:, 2:]
    ends = torch.tensor(size[::-1])
    unseen = (chances[:, 0] <= 0, (high <= low).any(1), ((high <= 0) | (low >= ends)).any(1))
    return torch.cat(
        [
            pad(each[:MAX_BOXES], (0, 0, 0, max(0, MAX_BOXES - count))).flatten(),
            each.sum(0),
            (each[1:] < each[:-1]).double().sum(0),
            torch.stack(unseen).double().sum(1),
        ]
    )


def readings_of_numbers(numbers: Tensor) -> Tensor:
    """Adds the low digits of all numbers: how far each is from the next tenth, and so on.

    Shapes: (rows, WIDTH) -> (rows, 5 WIDTH) float32.
    """
    scaled = [numbers * scale for scale in _SCALES]
    return torch.cat([numbers, *(part - part.round() for part in scaled)], 1).float()
