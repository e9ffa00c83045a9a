"""Audits of detectors: what is released of boxes is read as a map, and attacked as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from shieldnet.attacks.membership.shadows import Train
from shieldnet.attacks.positions.painted_shield import PaintedShield, without_defenses
from shieldnet.attacks.positions.painting import BoxMap, Fields, Painting, RankMap
from shieldnet.auditing.plan import protected
from shieldnet.auditing.sets import as_the_model_reads
from shieldnet.auditing.tables import Given
from shieldnet.core.errors import ConfigError, DataError
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
    targets = {role: own for role, (_, own) in parts.items() if own is not None}
    for role, own in targets.items():
        _require_targets(own, examples[role])
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
            for role in ("members", "nonmembers")
            for row, target in zip(
                row_bytes_of(examples[role].inputs), targets.get(role, ()), strict=True
            )
        }
        train = TrainOnTargets(train, by_image)
    return replace(given, shields=shields, sets={**given.sets, **maps}, train=train)


def _parted(value: Any, role: str) -> tuple[Any, list[Target] | None]:
    """Parts images and targets; of what is no detection there are none."""
    if isinstance(value, tuple | list) and len(value) == 2 and is_list_of_dicts(value[1]):
        return _stacked(value[0], role), list(value[1])
    is_rows = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    if is_rows and not isinstance(value, tuple | list | Mapping | Tensor) and len(value):
        first = value[0] if not hasattr(value, "iloc") else None
        if isinstance(first, tuple | list) and len(first) == 2 and isinstance(first[1], Mapping):
            rows = [value[row] for row in range(len(value))]
            if "boxes" in first[1]:
                return _stacked([image for image, _ in rows], role), [own for _, own in rows]
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


def _require_targets(targets: Sequence[Target], examples: Examples) -> None:
    """Raises DataError for targets that are no boxes, or not one for each image."""
    role = examples.name
    if len(targets) != len(examples):
        raise DataError(
            f"Expected a dict of boxes for each of the {len(examples)} images of the {role}, got "
            f"{len(targets)}."
        )
    for row, target in enumerate(targets):
        boxes = target.get("boxes")
        if not (isinstance(boxes, Tensor) and boxes.shape[1:] == (4,) and _is_finite(boxes)):
            raise DataError(
                f"Expected finite boxes of shape (boxes, 4) in every target of the {role}, x and "
                f"y of two corners in pixels; row {row} has {_described(boxes)}."
            )
        labels = target.get("labels")
        if labels is not None and labels.shape != boxes.shape[:1]:
            raise DataError(
                f"Expected a label for each box in the targets of the {role}; row {row} has "
                f"{tuple(labels.shape)} labels and {len(boxes)} boxes."
            )


def _is_finite(boxes: Tensor) -> bool:
    return bool(torch.isfinite(boxes).all())


def _described(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _painting_of(
    shields: Mapping[str, Shield], examples: Examples, targets: Mapping[str, Sequence[Target]]
) -> Painting:
    """Looks at one answer of every shield. Errors: ConfigError where their fields differ."""
    fields = {}
    for name, shield in shields.items():
        answer = shield(examples.inputs[:1])
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
        boxes = target["boxes"].detach().cpu()
        labels = target.get("labels")
        if painting.fields.labels is None or labels is None:
            return painting.truth(boxes, torch.zeros(len(boxes)).long())
        return painting.truth(boxes, painting.numbered(labels.detach().cpu()))

    return torch.stack([painted(target) for target in targets])
