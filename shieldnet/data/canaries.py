"""Records planted in the training data to be found again: the worst that can happen to anybody."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shieldnet.core.checks import choice, whole
from shieldnet.core.errors import DataError
from shieldnet.data.examples import Canaries, Examples, as_examples

KINDS = ("mislabeled", "out_of_distribution", "duplicated")


@dataclass(frozen=True)
class Planted:
    """Holds what to train on, and the canaries that ``audit(canaries=...)`` looks for.

    Several inputs of a model stay several, in the form in which they came.

    data: (inputs, labels) to train the model on, planted canaries among them. members: the same
    without canaries, for ``audit(members=...)``. canaries: planted and held out.
    """

    data: tuple[Any, Tensor]
    members: tuple[Any, Tensor]
    canaries: Canaries


def plant_canaries(
    data: object,
    *,
    count: int = 200,
    kind: str = "mislabeled",
    copies: int = 8,
    seed: int = 0,
) -> Planted:
    """Makes ``count`` canaries of some of the records; a fair draw decides which are trained on.

    An average record says little of the worst one: mislabeled records are found many times more
    often than clean ones. Train the model on ``.data``, then audit it with ``members=.members``
    and ``canaries=.canaries``.

    data: (inputs, labels). kind: ``mislabeled``: another label, drawn at random;
    ``out_of_distribution``: every feature shuffled among the canaries, label drawn at random;
    ``duplicated``: as they are, planted ``copies`` times.
    Errors: DataError for fewer than twice as many records, or for one class alone.
    Source: Aerni, Zhang, Tramer 2024 (arXiv:2404.17399) for mislabeled canaries as the worst case.
    """
    choice("kind", kind, KINDS)
    whole("count", count, low=2)
    whole("copies", copies, low=1)
    whole("seed", seed, low=0, high=2**63 - 1)
    examples = as_examples(data, "records to plant canaries among")
    if examples.labels is None:
        raise DataError("Canaries need labels: pass (inputs, labels).")
    if len(examples) < 2 * count:
        raise DataError(
            f"Expected at least {2 * count} records for {count} canaries, got {len(examples)}."
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=generator)
    chosen, others = order[:count], order[count:].sort().values
    inputs, labels = _canaries(examples.inputs, examples.labels, chosen, kind, generator)
    is_planted = torch.rand(count, generator=generator) < 0.5
    is_planted[:2] = torch.tensor([True, False])  # one of each, whatever is drawn
    times, packing = (copies if kind == "duplicated" else 1), examples.packing
    canaries = Canaries(
        kind,
        Examples("canaries", inputs[is_planted], labels[is_planted], packing),
        Examples("held-out canaries", inputs[~is_planted], labels[~is_planted], packing),
        times,
    )
    members = examples.inputs[others], examples.labels[others]
    data = (
        torch.cat([part, *[planted[is_planted]] * times])
        for part, planted in zip(members, (inputs, labels), strict=True)
    )

    def in_own_form(rows: Tensor, labels: Tensor) -> tuple[Any, Tensor]:
        return (rows if packing is None else packing.inputs(rows)), labels

    return Planted(
        data=in_own_form(*data),
        members=in_own_form(*members),
        canaries=canaries,
    )


def _canaries(
    inputs: Tensor, labels: Tensor, chosen: Tensor, kind: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Makes canaries of the chosen records. Errors: DataError for records of one class alone."""
    classes = labels.unique()
    inputs, labels = inputs[chosen], labels[chosen]
    if kind != "duplicated":
        if len(classes) < 2:
            raise DataError(f"Canaries that are {kind} need records of two classes or more.")
        labels = _other_labels(labels, classes, generator)
    if kind == "out_of_distribution":
        inputs = _shuffled(inputs, generator)
    return inputs, labels


def _other_labels(labels: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    """Draws, for each label, one of the other classes."""
    places = torch.searchsorted(classes, labels)
    step = torch.randint(1, len(classes), labels.shape, generator=generator)
    return classes[(places + step) % len(classes)]


def _shuffled(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Shuffles every feature among the rows: each is as it was, together they are like nothing."""
    flat = inputs.flatten(1)
    order = torch.rand(flat.shape, generator=generator).argsort(0)
    return flat.gather(0, order).reshape(inputs.shape)
