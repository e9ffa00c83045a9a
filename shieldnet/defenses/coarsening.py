"""Means over blocks of positions, for segmentations and texts."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.core.checks import whole
from shieldnet.core.errors import AnswerError
from shieldnet.defenses.base import Defense


@dataclass(frozen=True)
class Coarsen(Defense):
    """Replaces the rows of each square of positions by their mean.

    block: positions along each side of a square, at least 2; no default. Squares at the edge may be
        smaller.
    Shapes: (rows, height, width, classes), or one or three axes of positions -> the same.
    Guarantee: the rows of a square are equal bit by bit, so that the cost counts one of them.
    Guarantee: the same answer gives the same bits, on any device, in any batch.
    Errors: AnswerError for answers without positions.
    """

    block: int
    accepts = ("probabilities",)
    gives = "probabilities"
    keeps_argmax = False

    @classmethod
    def examples(cls) -> tuple[Defense, ...]:
        return (cls(2),)

    def __post_init__(self) -> None:
        whole("block", self.block, low=2)

    def __call__(self, answers: Tensor) -> Tensor:
        if answers.dim() < 3:
            raise AnswerError(
                f"{self} expects answers with positions, such as a segmentation's, but each row "
                "is one list of classes."
            )
        for axis in range(1, answers.dim() - 1):
            answers = _means(answers, axis, self.block)
        return answers

    def distinct(self, positions: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(math.ceil(count / self.block) for count in positions)


def _means(answers: Tensor, axis: int, block: int) -> Tensor:
    """Replaces every number by the mean of its block along one axis."""
    size = answers.shape[axis]
    rest = size % block
    full, edge = answers.split([size - rest, rest], axis)
    means = [
        _mean(scores.unflatten(axis, (-1, length)), axis + 1)
        for scores, length in ((full, block), (edge, rest))
        if scores.shape[axis]
    ]
    mean = torch.cat(means, axis)
    return mean.repeat_interleave(block, axis).narrow(axis, 0, size)


def _mean(answers: Tensor, axis: int) -> Tensor:
    """Averages along an axis in its order: a sum on a GPU has no fixed order."""
    first, *others = answers.unbind(axis)
    total = first.clone()
    for position in others:
        total += position
    return total / answers.shape[axis]
