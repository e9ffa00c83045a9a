"""Canaries: records planted in the training data to measure leakage in the worst case."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from shieldnet.core.checks import choice, whole
from shieldnet.core.errors import DataError
from shieldnet.data.examples import Canaries, Examples, as_examples
from shieldnet.data.packing import Packing

IGNORED = -100  # the label of a position that does not count
KINDS = ("mislabeled", "out_of_distribution", "duplicated")


@dataclass(frozen=True)
class Planted:
    """Holds training data with planted canaries, and what ``audit`` needs to find them.

    Several inputs of a model keep the form in which they were given; texts without labels stay so.

    data: (inputs, labels) to train on, including the planted canaries. members: the same without
    canaries, for ``audit(members=...)``. canaries: the planted and the held-out canaries, for
    ``audit(canaries=...)``.
    """

    data: Any
    members: Any
    canaries: Canaries


def plant_canaries(
    data: object,
    *,
    count: int = 200,
    kind: str = "mislabeled",
    copies: int = 8,
    seed: int = 0,
) -> Planted:
    """Turns ``count`` random records into canaries and plants each with probability 1/2.

    An average record says little about the worst one: attacks find mislabeled records many times
    more often than clean ones. Train the model on ``.data``, then audit it with
    ``members=.members`` and ``canaries=.canaries``.

    data: (inputs, labels), or texts alone, whose labels are their next tokens. count: number of
    canaries, 2 or more; at least one is planted and one is held out. kind: ``mislabeled`` gives
    each canary another label at random, or of fractions, the targets of a regression, that of a
    record far from it in their order; ``out_of_distribution`` also shuffles every feature (the
    tokens at each place of a text) among the canaries; ``duplicated`` leaves them unchanged and
    plants each ``copies`` times. seed: seed of all random draws.
    Errors: DataError for fewer than 2 x ``count`` records, or for records of a single class or
        target.
    Source: Aerni, Zhang, Tramer 2024 (arXiv:2404.17399) for mislabeled canaries as the worst case.
    """
    choice("kind", kind, KINDS)
    whole("count", count, low=2)
    whole("copies", copies, low=1)
    whole("seed", seed, low=0, high=2**63 - 1)
    examples = as_examples(data, "records to plant canaries among", targets=None)
    if examples.labels is None and kind == "mislabeled":
        raise DataError(
            "Canaries need labels: pass (inputs, labels). Of texts alone, make canaries with "
            "kind='out_of_distribution'."
        )
    if len(examples) < 2 * count:
        most = len(examples) // 2
        fix = f"Plant fewer: count={most}." if most >= 2 else "Add records."
        raise DataError(
            f"Expected at least {2 * count} records for count={count} canaries, got "
            f"{len(examples)}. {fix}"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=generator)
    chosen, others = order[:count], order[count:].sort().values
    is_real = examples.has_targets
    inputs, labels = _canaries(examples, chosen, kind, generator)
    is_planted = torch.rand(count, generator=generator) < 0.5
    is_planted[:2] = torch.tensor([True, False])  # at least one of each
    times, packing = (copies if kind == "duplicated" else 1), examples.packing

    def some(name: str, rows: Tensor) -> Examples:
        kept = None if labels is None else labels[rows]
        return Examples(name, inputs[rows], kept, packing, is_real)

    planted = some("canaries", is_planted)
    members = replace(examples.shuffled(others), name="members")
    return Planted(
        data=_in_own_form(_joined(members, planted, times)),
        members=_in_own_form(members),
        canaries=Canaries(kind, planted, some("held-out canaries", ~is_planted), times),
    )


def _joined(members: Examples, planted: Examples, times: int) -> Examples:
    """Adds planted records, so many times, after the others."""
    labels = members.labels
    if labels is not None and planted.labels is not None:
        labels = torch.cat([labels, *[planted.labels] * times])
    return replace(
        members, inputs=torch.cat([members.inputs, *[planted.inputs] * times]), labels=labels
    )


def _in_own_form(examples: Examples) -> Any:
    inputs, labels = examples.in_own_form()
    return inputs if labels is None else (inputs, labels)


def _canaries(
    examples: Examples, chosen: Tensor, kind: str, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Makes canaries of the chosen records. Errors: DataError for records of a single class."""
    inputs, labels = examples.inputs[chosen], None
    if examples.labels is not None:
        labels, classes = examples.labels[chosen], examples.labels.unique(dim=0)
        is_real = examples.has_targets
        if not is_real:
            classes = examples.labels.unique()
            classes = classes[classes != IGNORED]
        if kind != "duplicated":
            if len(classes) < 2:
                what = "targets" if is_real else "classes"
                raise DataError(f"Canaries of kind {kind} need records of at least two {what}.")
            labels = (_far_targets if is_real else _other_labels)(labels, classes, generator)
    if kind == "out_of_distribution":
        inputs = _shuffled(inputs, examples.packing, generator)
    return inputs, labels


def _other_labels(labels: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    """Draws, for each label, one of the other classes; positions that do not count stay so."""
    places = torch.searchsorted(classes, labels)
    step = torch.randint(1, len(classes), labels.shape, generator=generator)
    return classes[(places + step) % len(classes)].where(labels != IGNORED, labels)


def _far_targets(targets: Tensor, distinct: Tensor, generator: torch.Generator) -> Tensor:
    """Draws, for each target, one a quarter to three quarters further on in the order of all.

    Targets of several outputs are drawn whole, in the order of the first output.
    Shapes: targets (rows, ...), distinct (values, ...) in order -> (rows, ...).
    """
    count = len(distinct)
    first = distinct.reshape(count, -1)[:, 0].contiguous()
    rank = torch.searchsorted(first, targets.reshape(len(targets), -1)[:, 0].contiguous())
    quarter = max(1, count // 4)
    step = torch.randint(quarter, count - quarter + 1, rank.shape, generator=generator)
    return distinct[(rank + step) % count]


def _shuffled(inputs: Tensor, packing: Packing | None, generator: torch.Generator) -> Tensor:
    """Shuffles every feature among the rows; only its joint distribution changes.

    Inputs of one shape (tokens and their mask) are shuffled alike.
    """
    flat = inputs.flatten(1)
    order = torch.rand(flat.shape, generator=generator).argsort(0)
    if packing is not None:
        parts = dict(zip(packing.shapes, order.split(packing.sizes, 1), strict=True))
        order = torch.cat([parts[shape] for shape in packing.shapes], 1)
    return flat.gather(0, order).reshape(inputs.shape)
