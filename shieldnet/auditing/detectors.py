"""Audits of detectors: what is released of boxes is read as a map, and attacked as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from shieldnet.attacks.membership.shadows import Train
from shieldnet.attacks.positions.painted_shield import PaintedShield, without_defenses
from shieldnet.attacks.positions.painting import BoxMap, Fields, Painting, RankMap
from shieldnet.auditing.plan import protected
from shieldnet.auditing.sets import as_the_model_reads
from shieldnet.auditing.tables import Given
from shieldnet.core.errors import ConfigError, DataError, ShieldnetError
from shieldnet.data.examples import Examples, as_examples, row_bytes_of
from shieldnet.outputs.nested import is_list_of_dicts
from shieldnet.reports.report import BARE
from shieldnet.shield.module import Shield
from shieldnet.training.recipe import Recipe

Target = Mapping[str, Tensor]


@dataclass(frozen=True)
class TrainOnTargets:
    """Trains as the user's function does: on images and the boxes that belong to them.

    targets: by the content of an image.
    """

    train: Train
    targets: Mapping[bytes, Target]

    def __call__(self, data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
        images, _ = data
        own = [self.targets[row] for row in row_bytes_of(images)]
        return self.train((images, own), seed)  # type: ignore[arg-type]  # the user's own form


def as_maps(given: Given, canaries: object) -> Given:
    """Has a detector's shields answer with maps, and paints the true boxes of every set.

    A set is (images, a list with a dict of boxes, and labels, for each).
    Errors: DataError for targets that are no boxes, ConfigError for shields that release different
    fields and for what is not measured of detectors.
    """
    parts = {role: _parted(value, role) for role, value in given.sets.items() if value is not None}
    if not any(targets for _, targets in parts.values()):
        return given
    first = protected(given.shields)[0]
    shields = {**given.shields, BARE: without_defenses(first)}
    model = first.model
    examples = {role: as_examples(images, role) for role, (images, _) in parts.items()}
    examples = as_the_model_reads(examples, model)
    given_targets = {role: own for role, (_, own) in parts.items() if own is not None}
    targets = {role: _checked_targets(own, examples[role]) for role, own in given_targets.items()}
    if canaries is not None:
        raise ConfigError("Expected no canaries: those planted among boxes are not read yet.")
    if isinstance(given.train, Recipe):
        raise ConfigError(
            "A Recipe trains on labels, not on boxes. Pass train as a function, "
            "train((images, targets), seed) -> model."
        )
    painting = _painting_of(shields, examples["nonmembers"], targets)
    shields = {name: PaintedShield(shield, painting) for name, shield in shields.items()}
    maps = {
        role: replace(part, labels=_truth(painting, targets[role])) if role in targets else part
        for role, part in examples.items()
    }
    train = given.train
    if callable(train):
        by_image = {
            row: target
            for role, own in given_targets.items()
            for row, target in zip(row_bytes_of(examples[role].inputs), own, strict=True)
        }
        train = TrainOnTargets(train, by_image)
    return replace(given, shields=shields, sets={**given.sets, **maps}, train=train)


def _parted(value: Any, role: str) -> tuple[Any, list[Target] | None]:
    """Parts images and targets; of what is no detection there are none."""
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    if is_pair and is_list_of_dicts(value[1]) and value[1]:
        return _stacked(value[0], role), list(value[1])
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
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) != 1:
        raise DataError(
            f"Expected the images of the {role} in one shape, got {len(shapes)}, such as "
            f"{shapes[0]} and {shapes[-1]}. Resize or pad them, and their boxes."
        )
    return torch.stack([torch.as_tensor(image) for image in images])


def _checked_targets(given: Sequence[Target], examples: Examples) -> list[Target]:
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
    if boxes is None or boxes.shape[1:] != (4,) or not _are_boxes(boxes):
        raise DataError(
            "Expected boxes of shape (boxes, 4) in every target: x and y of the upper left corner, "
            f"and of the lower right one, in pixels, finite; {where} has {_described(boxes)}."
        )
    if labels is None:
        return {"boxes": boxes}
    if labels.shape != boxes.shape[:1] or labels.is_floating_point():
        raise DataError(
            f"Expected a whole-number label for each box; {where} has {len(boxes)} boxes and "
            f"labels of {labels.dtype}, shape {tuple(labels.shape)}."
        )
    return {"boxes": boxes, "labels": labels.long()}


def _tensor(value: Any) -> Tensor | None:
    is_array = isinstance(value, Tensor | np.ndarray)
    return torch.as_tensor(value).detach().cpu() if is_array else None


def _are_boxes(boxes: Tensor) -> bool:
    return bool(torch.isfinite(boxes).all() and (boxes[:, :2] <= boxes[:, 2:]).all())


def _described(boxes: Tensor | None) -> str:
    if boxes is None:
        return "none"
    if boxes.shape[1:] != (4,):
        return f"shape {tuple(boxes.shape)}"
    wrong = ~(torch.isfinite(boxes).all(1) & (boxes[:, :2] <= boxes[:, 2:]).all(1))
    return str(boxes[wrong][0].tolist())


def _answer_of(shield: Shield, image: Tensor) -> Any:
    """Asks about one image. Errors: DataError where the model cannot read it."""
    first = next(shield.parameters(), image)
    try:
        return shield(image.to(first.device, copy=True))
    except ShieldnetError:
        raise
    except Exception as unreadable:  # the user's own model: whatever it raises
        raise DataError(
            f"The model cannot read the images ({image.dtype}, shape {tuple(image.shape)}): "
            f"{type(unreadable).__name__}: {unreadable}"
        ) from unreadable


def _painting_of(
    shields: Mapping[str, Shield], examples: Examples, targets: Mapping[str, Sequence[Target]]
) -> Painting:
    """Looks at one answer of every shield. Errors: ConfigError where their fields differ."""
    fields = {}
    for name, shield in shields.items():
        answer = _answer_of(shield, examples.inputs[:1])
        if not is_list_of_dicts(answer) or len(answer) != 1:
            raise DataError(
                "Expected a detector, which answers with a list of dicts, for targets that are "
                f"dicts of boxes; the model answered with {type(answer).__name__}."
            )
        fields[name] = Fields.of(answer[0], shield.settings.main)
    if len(set(fields.values())) > 1:
        raise ConfigError(
            "Expected shields that release the same fields of a detector, to compare them; audit "
            "the others by themselves."
        )
    own = next(iter(fields.values()))
    every = [target for part in targets.values() for target in part]
    ids = {0}
    if own.labels is not None:
        if any("labels" not in target for target in every):
            raise DataError("Expected labels beside the boxes: the shield releases labels.")
        ids = {int(label) for target in every for label in target["labels"]} or ids
    height, width = examples.inputs.shape[-2:]
    kind = BoxMap if own.boxes else RankMap
    return kind(own, (height, width), tuple(sorted(ids)))


def _truth(painting: Painting, targets: Sequence[Target]) -> Tensor:
    """Paints true boxes. Shapes: -> (rows, *positions) int64."""

    def painted(target: Target) -> Tensor:
        boxes = target["boxes"]
        if painting.fields.labels is None:
            return painting.truth(boxes, torch.zeros(len(boxes)).long())
        return painting.truth(boxes, painting.numbered(target["labels"]))

    return torch.stack([painted(target) for target in targets])
