"""A detector's answer as a map: what its boxes say of every place, as a segmentation would.

Anyone who has boxes can paint them. True boxes are painted alike, so that what attacks and checks
read of segmentations they read of detections.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from shieldnet.attacks.positions.box_numbers import numbers_of
from shieldnet.core.errors import AnswerError
from shieldnet.outputs.nested import leaves, written
from shieldnet.shield.module import Shield

BACKGROUND = 0
_MAX_SIDE = 32  # cells of a map
_RANKS = 16  # boxes of a class that are read where their places are not released
_UNSAID = 0.9  # how sure a box is, where no score is released
_SUREST = 1 - 1e-6
_SLACK = 1e-4  # of scores beyond 0 and 1, by rounding
Detections = Mapping[str, Any]
"""The fields of one image: tensors with a row for each box."""


@dataclass(frozen=True)
class Fields:
    """Names the fields of a detector's answer that are released; None for those that are not.

    scores: (boxes,) fractions. boxes: (boxes, 4) pixels, x and y of two corners. labels: (boxes,)
    whole numbers.
    """

    scores: str | None
    boxes: str | None
    labels: str | None

    @classmethod
    def of(cls, image: Detections, main: str | None) -> "Fields":
        """Looks what the fields are, by their form. main: the field with defenses of its own.

        Errors: AnswerError for fields that nothing here reads, and for two of one form.
        """
        found: dict[str, str] = {}
        for path, leaf in leaves(image):
            name = written(path)
            form = _form(leaf, is_main=name == main)
            if form is None or form in found:
                raise AnswerError(
                    "An audit reads the scores, boxes and labels of a detector; the shield also "
                    f"releases {name}, which no attack here reads. Leave it out "
                    f"(drop=({name!r},)), or keep the certificate alone: shield.certificate()."
                )
            found[form] = name
        return cls(found.get("scores"), found.get("boxes"), found.get("labels"))


def _form(leaf: Any, *, is_main: bool) -> str | None:
    if not isinstance(leaf, Tensor):
        return None
    if leaf.dim() == 2 and leaf.shape[1] == 4 and leaf.dtype != torch.bool:
        return "boxes"
    if leaf.dim() == 1:
        return "scores" if leaf.is_floating_point() or is_main else "labels"
    return None


@dataclass(frozen=True)
class Painting(ABC):
    """Paints answers and true boxes onto one grid.

    fields: of an answer. size: (height, width) of the images, in pixels. ids: what labels number
    classes by; one class where labels are not released.
    """

    fields: Fields
    size: tuple[int, int]
    ids: tuple[int, ...]

    @property
    @abstractmethod
    def positions(self) -> tuple[int, int]:
        """Returns the size of the grid."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """Counts the classes of a cell, the background among them."""

    @abstractmethod
    def truth(self, boxes: Tensor, classes: Tensor) -> Tensor:
        """Paints what is true of an image.

        Shapes: boxes (n, 4), classes (n,) from 0 -> (*positions) int64.
        """

    @abstractmethod
    def _painted(self, boxes: Tensor | None, classes: Tensor, chances: Tensor) -> Tensor:
        """Shapes: (n, 4) or None, (n,), (n,) -> (*positions, classes) that sums to 1."""

    def answers(self, images: Sequence[Detections], shield: Shield) -> Tensor:
        """Paints what a shield released. Shapes: -> (images, *positions, classes) float32, CPU."""
        return torch.stack([self._answer(image, shield) for image in images])

    def _answer(self, image: Detections, shield: Shield) -> Tensor:
        held, names = self.held(image), self.fields
        count = len(next(iter(held.values())))
        boxes = held[names.boxes].double() if names.boxes else None
        classes = self.numbered(held[names.labels]) if names.labels else torch.zeros(count).long()
        if names.scores is None:
            chances = torch.full((count,), _UNSAID)
        else:
            chances = _chances(held[names.scores], names.scores, shield)
        chances = chances.double().clamp(0.0, _SUREST)
        return self._painted(boxes, classes, chances).float()

    def numbers(self, images: Sequence[Detections]) -> Tensor:
        """Lays what was released flat, in its order. Shapes: -> (images, WIDTH) float64."""
        names, rows = self.fields, []
        for image in images:
            held = self.held(image)
            boxes, scores, labels = (
                held[name] if name else None for name in (names.boxes, names.scores, names.labels)
            )
            rows.append(numbers_of(boxes, scores, labels, self.size))
        return torch.stack(rows)

    def held(self, image: Detections) -> dict[str, Tensor]:
        """Returns the fields of an image by their names, on the CPU."""
        return {written(path): leaf.detach().cpu() for path, leaf in leaves(image)}

    def numbered(self, labels: Tensor) -> Tensor:
        """Numbers labels from 0; those that no true box has are one more class. Shapes: (n,)."""
        known = labels.unsqueeze(1) == torch.tensor(self.ids)
        other = torch.ones(len(labels), 1, dtype=torch.bool)
        return torch.cat([known, other], 1).int().argmax(1)

    @property
    def kinds(self) -> int:
        """Counts what boxes may be of: known classes, and one for all others."""
        return len(self.ids) + 1


def _chances(scores: Tensor, name: str, shield: Shield) -> Tensor:
    """Reads scores as fractions; what defenses moved out of [0, 1] is clamped later.

    Errors: AnswerError where the model's own are outside.
    """
    settings = shield.settings
    is_main = name == settings.main or (settings.main is None and name not in shield.others)
    chain = shield.chain if is_main else shield.others.get(name)
    if chain is not None and chain.layout.kind != "values":
        return chain.distribution(scores, 2)[..., 1]
    kind = settings.outputs.get(name) if isinstance(settings.outputs, Mapping) else None
    if kind == "binary_logits":  # released as they are
        return scores.double().sigmoid()
    wrong = ~((scores >= -_SLACK) & (scores <= 1 + _SLACK))
    if wrong.any() and (chain is None or not chain.stages):
        raise AnswerError(
            f"Expected scores of boxes between 0 and 1, got {float(scores[wrong][0]):g} in "
            f"{name}: an audit would read it as certain. Of logits, say "
            f"outputs={{{name!r}: 'binary_logits'}}; of percentages or other numbers, convert "
            "them in the model."
        )
    return scores


@dataclass(frozen=True)
class BoxMap(Painting):
    """Paints boxes where they lie; a cell that is partly covered is painted as far as it is.

    A cell holds an object with the chance that not all boxes over it are wrong; whose it is, by
    their shares. A true box takes the cells of which it covers more than half, and that of its
    center, from larger ones.
    """

    @property
    def positions(self) -> tuple[int, int]:
        height, width = self.size
        return min(_MAX_SIDE, height), min(_MAX_SIDE, width)

    @property
    def classes(self) -> int:
        return 1 + self.kinds

    def truth(self, boxes: Tensor, classes: Tensor) -> Tensor:
        map_ = torch.full(self.positions, BACKGROUND)
        covered = (self._covered(boxes.double()) > 0.5) | self._centers(boxes.double())
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        for box in area.argsort(descending=True, stable=True).tolist():
            map_[covered[box]] = 1 + int(classes[box])
        return map_

    def _painted(self, boxes: Tensor | None, classes: Tensor, chances: Tensor) -> Tensor:
        assert boxes is not None  # noqa: S101  # or else it is a RankMap
        wrong = torch.log1p(-self._covered(boxes) * chances.reshape(-1, 1, 1))
        by_class = torch.zeros(self.kinds, *self.positions, dtype=wrong.dtype)
        by_class.index_add_(0, classes, wrong)
        nothing = by_class.sum(0).exp()
        each = -torch.expm1(by_class)
        share = each / each.sum(0).clamp_min(1e-30)
        return torch.cat([nothing.unsqueeze(0), (1 - nothing) * share]).movedim(0, -1)

    def _centers(self, boxes: Tensor) -> Tensor:
        """Marks the cell with the center of each box's part in the image. Shapes: as _covered."""
        ends = torch.tensor(self.size[::-1] * 2)
        inside = boxes.clamp_min(0).minimum(ends)
        middle = (inside[:, :2] + inside[:, 2:]) / 2
        cells = torch.tensor(self.positions[::-1])
        x, y = (middle * cells / ends[:2]).long().clamp_max(cells - 1).unbind(1)
        rows, columns = (
            one_hot(place, count).bool()
            for place, count in zip((y, x), self.positions, strict=True)
        )
        return rows.unsqueeze(2) & columns.unsqueeze(1)

    def _covered(self, boxes: Tensor) -> Tensor:
        """Says which part of every cell lies in a box. Shapes: (n, 4) -> (n, *positions)."""
        x, y = (
            _overlap(boxes[:, axis] * cells / length, boxes[:, axis + 2] * cells / length, cells)
            for axis, cells, length in zip(
                (0, 1), self.positions[::-1], self.size[::-1], strict=True
            )
        )
        return y.unsqueeze(2) * x.unsqueeze(1)


def _overlap(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Returns the part of each unit of a line that lies between ends. Shapes: -> (n, cells)."""
    start = torch.arange(cells, dtype=low.dtype)
    ends = torch.minimum(high.unsqueeze(1), start + 1)
    return (ends - torch.maximum(low.unsqueeze(1), start)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class RankMap(Painting):
    """Paints a row of cells for each class: its surest box, the next, and so on.

    Where boxes are not released, this is all that is. An image with three objects of a class is
    true in the first three cells of its row.
    """

    @property
    def positions(self) -> tuple[int, int]:
        return self.kinds, _RANKS

    @property
    def classes(self) -> int:
        return 2

    def truth(self, boxes: Tensor, classes: Tensor) -> Tensor:
        counts = classes.bincount(minlength=self.kinds).unsqueeze(1)
        return (torch.arange(_RANKS) < counts).long()

    def _painted(self, boxes: Tensor | None, classes: Tensor, chances: Tensor) -> Tensor:
        of_class = one_hot(classes, self.kinds).T * chances
        padded = torch.nn.functional.pad(of_class, (0, _RANKS))
        ranked = padded.sort(1, descending=True).values[:, :_RANKS]
        return torch.stack([1 - ranked, ranked], -1)
