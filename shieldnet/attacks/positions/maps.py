"""Was this image in the training data? Scores of what is released of its pixels."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.membership.metrics import OF_GROUPS, OF_MAPS
from shieldnet.attacks.membership.reporting import (
    MIN_ROWS,
    outcome_of,
    require_rates,
    require_untold,
)
from shieldnet.attacks.membership.scored import Scored
from shieldnet.attacks.positions.beside_shadows import COLUMNS, beside_shadows, means_of_sums
from shieldnet.attacks.positions.number_scores import learned_scores
from shieldnet.attacks.positions.readings import (
    Readings,
    extent_of,
    mean_over,
    owned_with_truth,
    readings_of,
    truth_of,
)
from shieldnet.attacks.positions.sequence_scores import CAP, lowest_mean, means_of
from shieldnet.attacks.shadow_answers import PositionShadows
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable, Outcome

_PREFIX = "membership.maps"
_WORST = 0.1
_LEAST_DEVIATION = 1e-6


@dataclass(frozen=True)
class MapMembership(Attack):
    """Scores every image by what is released of its pixels; members score higher.

    Scores: those of ``map_scores``, and with shadows those of ``beside_shadows`` on means over all
    pixels and over boundaries; of a detector also ``learned_scores`` of the numbers of its boxes,
    by an adversary who knows half of the members. All are reported with how many of their scores
    differ, and the worst as ``membership.maps.auc`` and ``membership.maps.tpr_at_fpr_...``, whose
    intervals hold for all at once. Groups as in ``Membership``. Images that are in a set more than
    once count once.

    Errors: NotApplicable where answers are no maps, or members can be told without the model.
    NOT promised: that no attack does better. ``PositionAveraging`` averages noise.
    """

    at_positions = True
    metrics = (*OF_MAPS, *OF_GROUPS)
    needs_shadows = True
    fprs: tuple[float, ...] = (1e-2, 1e-3)

    def __post_init__(self) -> None:
        require_rates(self.fprs)

    def __call__(self, game: Game) -> Outcome:
        positions = extent_of(game).positions
        if len(positions) < 2:
            raise NotApplicable(f"it reads maps, the model answers at positions {positions}")
        game.require_rows(MIN_ROWS, game.members, game.nonmembers)
        require_untold(game)
        return outcome_of(game, _PREFIX, scored_maps(game), self.fprs)


def scored_maps(game: Game) -> dict[str, Scored]:
    """Scores members and nonmembers in every way that the game allows."""
    sets, floor = (game.members, game.nonmembers), _floor(game)
    read = [readings_of(game, examples) for examples in sets]
    plain = [map_scores(readings, floor) for readings in read]
    rows = (torch.arange(len(game.members)), torch.arange(len(game.nonmembers)))
    scored = {name: Scored(plain[0][name], plain[1][name], rows, 1) for name in plain[0]}
    if read[0].numbers is not None and read[1].numbers is not None:
        learned = learned_scores(read[0].numbers, read[1].numbers, game.seed)
        scored |= {name: Scored(*scores, rows, 1) for name, scores in learned.items()}
    if game.position_shadows is None:
        return scored
    shadows = game.position_shadows
    said = [_said(game, shadows, examples, floor) for examples in sets]
    scores = beside_shadows(
        {name: torch.cat([part[name] for part in plain]) for name in said[0]},
        {name: torch.cat([part[name] for part in said], 1) for name in said[0]},
        torch.cat([shadows.trained_on[examples.name] for examples in sets], 1),
        next(iter(_owned_losses(game, shadows, floor)), None),
    )
    count = len(game.members)
    return scored | {
        name: Scored(values[:count], values[count:], rows, 1, shadows.count)
        for name, values in scores.items()
    }


def _said(
    game: Game, shadows: PositionShadows, examples: Examples, floor: float
) -> dict[str, Tensor]:
    """Returns means of what the shadows say of each image. Shapes: -> each (shadows, rows)."""
    sums = shadows.sums[game.shield.settings.digest()][examples.name]
    truth = truth_of(game, examples)
    edge = boundaries(truth.labels, truth.counted)
    means: dict[str, Tensor] = {}
    for where, part, kept in (
        ("", truth.counted, sums[..., :COLUMNS]),
        (" at boundaries", edge, sums[..., COLUMNS:]),
    ):
        names = (f"{name}{where}" for name in ("loss", "capped loss", "right pixels"))
        of_part = means_of_sums(kept, part.flatten(1).sum(1), floor)
        means |= zip(names, of_part, strict=True)
    return means


def _owned_losses(
    game: Game, shadows: PositionShadows, floor: float
) -> Iterator[tuple[Tensor, Tensor]]:
    for examples in owned_with_truth(game):
        target = map_scores(readings_of(game, examples), floor)["loss"]
        yield target, _said(game, shadows, examples, floor)["loss"]


def _floor(game: Game) -> float:
    """Returns half of the least that was released above zero, on the reference."""
    sets = owned_with_truth(game) or (game.members, game.nonmembers)
    return max(min(readings_of(game, examples).least for examples in sets) / 2, 1e-300)


def map_scores(readings: Readings, floor: float) -> dict[str, Tensor]:
    """Scores each image by what is released of its pixels. Shapes: -> each (rows,) float64.

    The means of ``means_of``, and: entropy: minus the mean entropy. worst pixels: the mean of the
    lowest tenth of log p. standardized loss: the mean of (log p - its mean) / its deviation, both
    under the released distribution (Zhang 2024, arXiv:2404.02936). at boundaries: means over pixels
    beside one of another class, where a model that was not trained on the image is least sure; over
    all pixels of an image of one class.

    floor: the probability that a released zero is read as.
    """
    means, counted = means_of(readings, floor), readings.counted
    log_p = readings.floored(floor)
    edge = boundaries(readings.labels, counted)
    standardized = (log_p - readings.mean) / readings.deviation.clamp_min(_LEAST_DEVIATION)
    right = readings.right.double()
    return {
        "loss": means["loss"],
        "capped loss": means["capped loss"],
        "right pixels": mean_over(right, counted),
        "entropy": mean_over(readings.mean, counted),
        "standardized loss": mean_over(standardized, counted),
        "worst pixels": lowest_mean(log_p.flatten(1), counted.flatten(1), _WORST),
        "loss at boundaries": mean_over(log_p, edge),
        "capped loss at boundaries": mean_over(log_p.clamp_min(CAP), edge),
        "entropy at boundaries": mean_over(readings.mean, edge),
        "right pixels at boundaries": mean_over(right, edge),
    }


def boundaries(labels: Tensor, counted: Tensor) -> Tensor:
    """Returns which pixels lie beside one of another class, or all where none does.

    Pixels that do not count bound nothing. Shapes: (rows, *positions) twice -> the same, bool.
    """
    edge = torch.zeros_like(counted)
    for axis in range(1, labels.dim()):
        length = labels.shape[axis] - 1
        first, second = (labels.narrow(axis, start, length) for start in (0, 1))
        known = counted.narrow(axis, 0, length) & counted.narrow(axis, 1, length)
        differs = (first != second) & known
        for start in (0, 1):
            edge.narrow(axis, start, length).logical_or_(differs)
    has_edge = edge.flatten(1).any(1).reshape(-1, *[1] * (labels.dim() - 1))
    return torch.where(has_edge, edge, counted)
