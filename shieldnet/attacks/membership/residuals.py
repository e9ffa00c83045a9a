"""Membership in the training data of a regression: by what is missing to the target."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from shieldnet.attacks.base import Answers, Game, defended
from shieldnet.attacks.membership.likelihood import (
    OFFLINE,
    info_rmia,
    lira,
    lira_by_pull,
    lira_toward,
    symbol_ratio,
)
from shieldnet.attacks.membership.perturbations import COPIES, max_perturbed_rows, perturbed
from shieldnet.attacks.membership.quantile import MIN_ROWS as QUANTILE_ROWS
from shieldnet.attacks.membership.quantile import quantile_scores
from shieldnet.attacks.membership.scored import Population, Scored, Signals
from shieldnet.attacks.membership.scores import MAX_SYMBOLS, ShadowComparison
from shieldnet.data.examples import Examples, Group, reference_rows

_MAX_OUTPUTS = 8  # of a model, each of which is also scored by itself
_MEAN_TO_DEVIATION = (torch.pi / 2) ** 0.5  # of a normal residual's absolute value


@dataclass(frozen=True)
class Residuals:
    """Reads answers as what is missing to the target, in units of one reference.

    The reference are the adversary's own rows with targets, or else both sets together.
    Shapes: unit (outputs,) of a residual; levels, the values that are ever released of each output,
    where these are few, else None.
    """

    unit: Tensor
    levels: tuple[Tensor, ...] | None

    @classmethod
    def of(cls, game: Game, queries: int) -> "Residuals":
        """Measures the unit on what the game's shield answers about the reference."""
        sets = game.reference
        if any(examples.labels is None for examples in sets):
            sets = game.members, game.nonmembers
        answers = torch.cat(
            [game.ask(examples, queries).distribution.double() for examples in sets]
        )
        targets = torch.cat([game.labels(examples) for examples in sets])
        unit = (targets - answers).abs().mean(0) * _MEAN_TO_DEVIATION
        levels = tuple(column.unique() for column in answers.T)
        most = min(MAX_SYMBOLS, len(answers) // 4)
        are_few = all(len(column) <= most for column in levels)
        return cls(unit.where(unit > 0, 1.0), levels if are_few else None)

    def signals(self, answers: Tensor, targets: Tensor) -> Signals:
        """Says what answers tell of records; a higher loss here is a smaller one.

        residuals: signed. loss: minus their mean square. p: the normal density of the target
        about the answer, as a share of the highest. steps: how many released values the answer
        lies off the one that is nearest the target.
        Shapes: (rows, outputs) twice -> each (rows,), residuals (rows, outputs).
        """
        residuals = (targets - answers.double()) / self.unit
        squares = residuals.square().mean(1)
        signals = {"residuals": residuals, "loss": -squares, "p": (-squares / 2).exp()}
        if self.levels is not None:
            apart = [
                (_nearest(levels, own) - _nearest(levels, target)).abs()
                for levels, own, target in zip(
                    self.levels, answers.double().T, targets.T, strict=True
                )
            ]
            signals["steps"] = torch.stack(apart).sum(0)
        return signals

    def scores(self, answers: Tensor, targets: Tensor) -> Signals:
        """Scores records by one answer each; a higher score says member. Shapes: -> each (rows,).

        loss: minus the mean squared residual (Yeom 2018). Of several outputs also the largest
        residual, and each of a few outputs by itself: a model may know one of them by heart.
        """
        residuals = (targets - answers.double()) / self.unit
        scores = {"loss": -residuals.square().mean(1)}
        if residuals.shape[1] > 1:
            scores["largest residual"] = -residuals.abs().amax(1)
        if 1 < residuals.shape[1] <= _MAX_OUTPUTS:
            scores |= {
                f"loss of output {number}": -column.abs()
                for number, column in enumerate(residuals.T)
            }
        return scores


def _nearest(levels: Tensor, values: Tensor) -> Tensor:
    """Returns the place of the nearest level. Shapes: (n,) in order, (rows,) -> (rows,)."""
    between = (levels[1:] + levels[:-1]) / 2
    return torch.searchsorted(between, values.contiguous())


def residual_scores(
    game: Game, members: Examples, nonmembers: Examples, queries: int
) -> dict[str, Scored]:
    """Scores members and nonmembers of a regression in every way that the game allows.

    Ways: those of ``Residuals.scores``; the mean answer about moved copies, which reads through a
    coarse rounding; quantile regression where the adversary owns rows with targets; with shadows
    also LiRA on signed residuals (online, by pull, towards the target), RMIA (online, offline),
    ratios of symbols, moved copies compared with shadows, and an ensemble of all.
    """
    residuals = Residuals.of(game, queries)
    sets = (members, nonmembers)
    rows = (torch.arange(len(members)), torch.arange(len(nonmembers)))

    def scores_of(examples: Examples) -> Signals:
        answers = game.ask(examples, queries).distribution
        return residuals.scores(answers, game.labels(examples))

    plain = [scores_of(examples) for examples in sets]
    scores = {name: Scored(plain[0][name], plain[1][name], rows, queries) for name in plain[0]}
    if queries == 1 and members.inputs.is_floating_point():
        scores["moved copies"] = _on_copies(game, members, nonmembers, residuals)
    owned = game.auxiliary
    if (
        owned is not None
        and owned.labels is not None
        and owned.inputs.is_floating_point()
        and len(owned) >= QUANTILE_ROWS
    ):
        known = -scores_of(owned)["loss"].neg().sqrt()  # without the long tail of squares
        signals = {
            examples.name: (examples, -own["loss"].neg().sqrt())
            for examples, own in zip(sets, plain, strict=True)
        }
        values = quantile_scores(owned, known, len(residuals.unit), signals, game.seed)
        scores["quantile"] = Scored(*(values[examples.name] for examples in sets), rows, queries)
    if game.shadows is not None and members.name in game.shadows.scores:
        comparison = ResidualComparison(game, game.shadows, members, nonmembers, queries)
        scores |= comparison.scores(scores)
    return scores


def _moved(game: Game, inputs: Tensor) -> Tensor:
    """Shapes: (rows, ...) -> (copies * rows, ...)."""
    reference = reference_rows(game.members, game.nonmembers, game.auxiliary)
    return perturbed(inputs, reference, game.seed).flatten(0, 1)


def _places(game: Game, examples: Examples) -> Tensor:
    rows = torch.arange(len(examples))
    places = rows if game.shadows is None else game.shadows.places.get(examples.name, rows)
    return places[: max_perturbed_rows(examples.inputs)]


def _on_copies(game: Game, members: Examples, nonmembers: Examples, residuals: Residuals) -> Scored:
    """Scores records by the mean of the answers about them and about moved copies."""
    sets = (members, nonmembers)
    places = [_places(game, examples) for examples in sets]
    losses = []
    for examples, rows in zip(sets, places, strict=True):
        copies = Examples(f"moved {examples.name}", _moved(game, examples.inputs[rows]))
        moved = game.ask(copies).distribution.unflatten(0, (COPIES, -1))
        own = game.ask(examples).distribution[rows]
        answers = torch.cat([own.unsqueeze(0), moved]).mean(0)
        losses.append(residuals.signals(answers, game.labels(examples)[rows])["loss"])
    return Scored(losses[0], losses[1], (places[0], places[1]), COPIES + 1)


@dataclass(frozen=True)
class ResidualComparison(ShadowComparison):
    """Compares the target's residuals with those of the shadows, behind the same shield."""

    @cached_property
    def residuals(self) -> Residuals:
        return Residuals.of(self.game, self.queries)

    def _signals(self, answers: Answers, labels: Tensor) -> Signals:
        return self.residuals.signals(answers.distribution, labels)

    def compare(
        self, target: Signals, shadows: Signals, trained_on: Tensor, population: Population
    ) -> Signals:
        """Scores a target's residuals against those of shadows. Shapes: -> each (rows,)."""
        outputs = target["residuals"].shape[1]
        own, others = target["residuals"].flatten(), shadows["residuals"].flatten(1)
        each = trained_on.repeat_interleave(outputs, 1)

        def summed(scores: Tensor) -> Tensor:
            return scores.unflatten(0, (-1, outputs)).sum(1)

        scores = {
            "LiRA": summed(lira(own, others, each)),
            "LiRA by pull": summed(lira_by_pull(own, others, each)),
            "LiRA offline": lira_toward(target["residuals"], shadows["residuals"], trained_on),
            "RMIA": info_rmia(target["p"], shadows["p"], trained_on, population),
            "RMIA offline": info_rmia(
                target["p"], shadows["p"], trained_on, population, offline=OFFLINE
            ),
        }
        if "steps" in target:
            scores["symbols"] = symbol_ratio(target["steps"], shadows["steps"], trained_on)
        return scores

    def columns(self, signals: Signals, compared: Signals) -> Tensor:
        """Lays scores side by side for the ensemble. Shapes: -> (rows, columns) float64."""
        kept = ("LiRA", "LiRA by pull", "LiRA offline", "RMIA", "RMIA offline")
        columns = [signals["loss"].neg().sqrt(), *(compared[name] for name in kept)]
        return torch.stack([column.double() for column in columns], 1)

    def _label_only(self, plain: Mapping[str, Scored]) -> dict[str, Scored]:
        """Compares the answers about moved copies with the shadows' answers about them."""
        if "moved copies" not in plain or self.members.name not in self.shadows.perturbed:
            return {}
        places = plain["moved copies"].places
        target, shadows, trained_on = [], [], []
        for examples, rows in zip(self.sets, places, strict=True):
            inputs, targets = examples.inputs[rows], self.game.labels(examples)[rows]
            copies = _moved(self.game, inputs)
            asked = Examples(f"moved {examples.name}", copies)
            moved = self.game.ask(asked).distribution.unflatten(0, (COPIES, -1)).mean(0)
            target.append(self.residuals.signals(moved, targets)["residuals"])
            of_shadows = [
                defended(self.game.shield, scores.flatten(0, 1), copies)
                .distribution.unflatten(0, (COPIES, -1))
                .mean(0)
                for scores in self.shadows.perturbed[examples.name]
            ]
            shadows.append(
                torch.stack(
                    [
                        self.residuals.signals(answers, targets)["residuals"]
                        for answers in of_shadows
                    ]
                )
            )
            trained_on.append(self.shadows.trained_on[examples.name][:, : len(rows)])
        own, others, each = torch.cat(target), torch.cat(shadows, 1), torch.cat(trained_on, 1)
        outputs = own.shape[1]
        values = lira_by_pull(own.flatten(), others.flatten(1), each.repeat_interleave(outputs, 1))
        values = values.unflatten(0, (-1, outputs)).sum(1)
        count = len(target[0])
        return {
            "moved copies against shadows": Scored(
                values[:count], values[count:], places, COPIES, self.shadows.count
            )
        }


def quarters(game: Game) -> Iterator[Group]:
    """Divides the records by the quarter that their target lies in, of both sets together."""
    members, nonmembers = game.labels(game.members), game.labels(game.nonmembers)
    if members.shape[1] > _MAX_OUTPUTS:
        return
    for output, pool in enumerate(torch.cat([members, nonmembers]).T):
        ends = pool.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=pool.dtype))
        sides = [
            torch.searchsorted(ends, part[:, output].contiguous()) for part in (members, nonmembers)
        ]
        of = "" if members.shape[1] == 1 else f" of output {output}"
        for quarter in range(4):
            name = f"quarter {quarter + 1} of the targets{of}"
            yield Group(name, *(side == quarter for side in sides))
