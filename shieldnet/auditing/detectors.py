"""Audits of detectors: what is released of boxes is read as a map, and attacked as one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from shieldnet.attacks.answers import inputs_at_once
from shieldnet.attacks.membership.shadows import Train
from shieldnet.attacks.positions.painted_shield import PaintedShield, without_defenses
from shieldnet.attacks.positions.painting import BoxMap, Fields, Painting, RankMap
from shieldnet.auditing.box_forms import require_painted, require_true_boxes
from shieldnet.auditing.plan import protected
from shieldnet.auditing.sets import as_the_model_reads
from shieldnet.auditing.tables import Given
from shieldnet.auditing.targets import Target, checked, parted, size_of
from shieldnet.core.errors import ConfigError, DataError, ShieldnetError
from shieldnet.data.examples import Examples, as_examples, row_bytes_of
from shieldnet.outputs.nested import is_list_of_dicts
from shieldnet.reports.report import BARE
from shieldnet.shield.module import Shield
from shieldnet.training.recipe import Recipe

_LOOKED_AT = 8  # images at once


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
    parts = {role: parted(value, role) for role, value in given.sets.items() if value is not None}
    if not any(targets for _, targets in parts.values()):
        return given
    first = protected(given.shields)[0]
    shields = {**given.shields, BARE: without_defenses(first)}
    model = first.model
    examples = {role: as_examples(images, role) for role, (images, _) in parts.items()}
    examples = as_the_model_reads(examples, model)
    given_targets = {role: own for role, (_, own) in parts.items() if own is not None}
    targets = {role: checked(own, examples[role]) for role, own in given_targets.items()}
    if canaries is not None:
        raise ConfigError("Expected no canaries: those planted among boxes are not read yet.")
    if isinstance(given.train, Recipe):
        raise ConfigError(
            "A Recipe trains on labels, not on boxes. Pass train as a function, "
            "train((images, targets), seed) -> model."
        )
    painting = _painting_of(shields, examples["nonmembers"], targets)
    for role, own_targets in targets.items():
        require_true_boxes(own_targets, painting.size, role)
    require_painted(shields[BARE], painting, _alternating(examples))
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


def _answer_of(shield: Shield, image: Tensor) -> Any:
    """Asks about one image. Errors: DataError where the model cannot read it."""
    first = next(shield.parameters(), image)
    try:
        return shield(image.to(first.device, copy=True))
    except ShieldnetError:
        raise
    except Exception as unreadable:  # the user's own model: whatever it raises
        fix = ""
        if _reads_lists(shield.model, image.to(first.device, copy=True)):
            fix = (
                ". It reads a list of images, an audit asks with one tensor of all: put it into a "
                "module whose forward(images) returns model(list(images))"
            )
        raise DataError(
            f"The model cannot read the images ({image.dtype}, shape {tuple(image.shape)}): "
            f"{type(unreadable).__name__}: {unreadable}{fix}."
        ) from unreadable


def _reads_lists(model: nn.Module, image: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(list(image))
    except Exception:  # the user's own model: whatever it raises
        return False
    return True


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
    kind = BoxMap if own.boxes else RankMap
    return kind(own, size_of(examples), tuple(sorted(ids)))


def _alternating(examples: Mapping[str, Examples]) -> Iterator[Tensor]:
    """Yields a few images of one set, then of the next, until there are none."""
    parts = [
        part.inputs.split(min(_LOOKED_AT, inputs_at_once(part.inputs)))
        for part in examples.values()
    ]
    for row in zip_longest(*parts):
        yield from (images for images in row if images is not None)


def _truth(painting: Painting, targets: Sequence[Target]) -> Tensor:
    """Paints true boxes. Shapes: -> (rows, *positions) int64."""

    def painted(target: Target) -> Tensor:
        boxes = target["boxes"]
        if painting.fields.labels is None:
            return painting.truth(boxes, torch.zeros(len(boxes)).long())
        return painting.truth(boxes, painting.numbered(target["labels"]))

    return torch.stack([painted(target) for target in targets])
