"""Preflight: finds what would break the guarantee, and measures the sensitivity of the sum."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shieldnet.core.errors import PreflightFailed
from shieldnet.training.ids import FIX, ids_beyond, is_beyond
from shieldnet.training.private.capture import NotCaptured
from shieldnet.training.private.gradient_parts import clipped_sum
from shieldnet.training.private.gradients import Losses, Move, RecordGradients
from shieldnet.training.private.hazards import (
    Hazard,
    few_of,
    reason_of,
    same_draws,
    stand_ins,
    untried,
)
from shieldnet.training.records import Records

_SEEDS = 4
_SMALL_CLIP = 1e-3  # at which every gradient is clipped


@dataclass(frozen=True)
class Preflight:
    """Holds what was found before training.

    hazards: training requires that there are none. sensitivity: how far the worst of the tried
    records moved the clipped sum, in clip norms; a measurement that the proof does not use. fixes:
    what ``fix=True`` changed, in words.
    """

    hazards: tuple[Hazard, ...]
    sensitivity: float = math.nan
    fixes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"hazard: {hazard}" for hazard in self.hazards]
        lines += [f"fix=True has {fixed}" for fixed in self.fixes]
        if math.isfinite(self.sensitivity):
            lines.append(
                f"one record moved the sum of gradients by {self.sensitivity:.3f} clip norms"
            )
        return "\n".join(lines)

    def require(self) -> None:
        """Raises PreflightFailed with every hazard and its fix."""
        if not self.hazards:
            return
        raise PreflightFailed(
            "Nothing was trained.\n" + "\n".join(f"- {hazard}" for hazard in self.hazards)
        )


def examine(
    model: nn.Module,
    records: Records,
    losses: Losses,
    *,
    clip: float,
    views: int = 1,
    move: Move | None = None,
    data: Records | None = None,
) -> tuple[Preflight, RecordGradients | None]:
    """Captures the gradient of a record, and measures how far records move the clipped sum.

    Only the graph sees records, never user code.
    model: as for ``hazards_of``, without such hazards; it is not changed. move: changes inputs
    before a step. data: all records, if these are some of them. Returns the gradients to train
    with, or None with a hazard.
    """
    inputs, labels = few_of(records)
    try:
        if move is not None and _mixes(move, model, *stand_ins(records)):
            return Preflight((_MIXED,)), None
    except IndexError as outside:
        return Preflight((untried(outside),)), None
    try:
        gradients = RecordGradients(model, losses, clip, (inputs, labels), views=views, move=move)
    except NotCaptured as untraceable:
        return Preflight((_uncaptured(untraceable),)), None
    unseen = [
        Hazard(
            "unseen weight",
            name,
            "the loss does not depend on it, so it would be trained on noise alone",
            "Freeze it (requires_grad_(False))",
            fixes="freezes it",
            done=f"froze {name}, which the loss does not depend on",
        )
        for name in gradients.unseen
    ]
    if unseen:
        return Preflight(tuple(unseen)), gradients
    try:
        with same_draws():
            batches = _batches(inputs, labels, records.is_whole)
            worst = max(_moved_by_last(gradients, x, y) for x, y in batches)
            difference = gradients.difference(gradients.each(inputs, labels), inputs, labels, 0)
    except (IndexError, RuntimeError) as unmapped:
        if is_beyond(unmapped):
            beyond = ids_beyond(model, data or records) if records.is_whole.any() else ""
            hazard = _unknown_ids(beyond, unmapped) if beyond else untried(unmapped)
            return Preflight((hazard,)), gradients
        # An operator without support for vmap.
        return Preflight((_uncaptured(unmapped),)), None
    if difference > gradients.tolerance or worst > 1:
        return Preflight((_wrong(difference, worst),), worst), None
    return Preflight((), worst), gradients


_MIXED = Hazard(
    "mixed records",
    "the countermeasures",
    "when one record changes, the augmented others change too; private training passes one record "
    "at a time, so they would act differently",
    "Augment every record independently of its batch",
)


def _mixes(move: Move, model: nn.Module, inputs: Tensor, labels: Tensor) -> bool:
    """Changes the last record and returns whether the augmented others change with it.

    This helps the user; the guarantee does not depend on it.
    """
    model = copy.deepcopy(model)
    other = torch.cat([inputs[:-1], inputs[:1]])

    def made(seed: int, rows: Tensor) -> Tensor:
        with same_draws(seed):
            return move(rows, labels, model)[:-1]

    return not all(
        torch.allclose(made(seed, inputs), made(seed, other), rtol=1e-4, atol=1e-5, equal_nan=True)
        for seed in range(_SEEDS)
    )


def _unknown_ids(beyond: str, failed: Exception) -> Hazard:
    return Hazard(
        "values out of range",
        "the model's forward",
        f"it failed on whole numbers of the data with {type(failed).__name__}: "
        f"{reason_of(failed):.200}. {beyond}",
        FIX,
    )


def _uncaptured(untraceable: Exception) -> Hazard:
    reason = reason_of(untraceable)[:400]
    return Hazard(
        "no graph",
        "the model, its loss or its countermeasures",
        f"one record's gradient cannot be captured as a graph of tensor operators: {reason}",
        "This says nothing about privacy, but only a captured computation can be proven to see "
        "one record alone",
    )


def _wrong(difference: float, worst: float) -> Hazard:
    return Hazard(
        "wrong gradients",
        "the model",
        f"a record's gradient in a batch differs by {difference:.2g} of its norm from its gradient "
        f"by itself, and one record moved the clipped sum by {worst:.3g} clip norms",
        "This should not be possible. Please report it with the model",
    )


def _batches(inputs: Tensor, labels: Tensor, is_whole: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields small batches whose last record is ordinary, huge, or an outlier.

    Whole numbers, such as tokens, stay what they are.
    """
    mislabeled = torch.cat([labels[:-1], labels[:1]])
    yield inputs, labels
    yield inputs, mislabeled
    if not is_whole.all():
        noise = torch.randn(inputs[:1].shape, generator=torch.Generator().manual_seed(1))
        noise = noise.to(inputs.device, inputs.dtype)
        usual = inputs[-1:]
        for last in (100 * usual + 10, usual + 3000, -10 * usual, 10 * noise, 1e30 * noise):
            last = torch.where(is_whole, usual, last)
            yield torch.cat([inputs[:-1], last]), labels
            yield torch.cat([inputs[:-1], last]), mislabeled


def _moved_by_last(gradients: RecordGradients, inputs: Tensor, labels: Tensor) -> float:
    """Returns how far the last record moves the clipped sum, in clip norms, for two of them."""
    farthest = 0.0
    draws = gradients.draws(inputs[-1:], labels[-1:])
    for clip in (gradients.clip, _SMALL_CLIP * gradients.clip):
        sums = []
        for rows in (len(inputs), len(inputs) - 1):
            totals = gradients.zeros()
            if rows:
                clipped_sum(gradients.each(inputs[:rows], labels[:rows], draws), clip, totals)
            sums.append(totals)
        squares = sum(
            float((total - other).square().sum()) for total, other in zip(*sums, strict=True)
        )
        farthest = max(farthest, math.sqrt(squares) / clip)
    return farthest
