"""Membership in the training data of a regression: by what is missing to the target."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from shieldnet.attacks.answers import Answers, defended
from shieldnet.attacks.base import Game
from shieldnet.attacks.membership.comparison import MAX_SYMBOLS, ShadowComparison
from shieldnet.attacks.membership.label_only import perturbed_places, perturbed_rows
from shieldnet.attacks.membership.likelihood import (
    OFFLINE,
    info_rmia,
    lira,
    lira_by_pull,
    lira_half_way,
    symbol_ratio,
)
from shieldnet.attacks.membership.perturbations import COPIES, widths
from shieldnet.attacks.membership.quantile import MIN_ROWS as QUANTILE_ROWS
from shieldnet.attacks.membership.quantile import quantile_scores
from shieldnet.attacks.membership.scored import Population, Scored, Signals
from shieldnet.data.examples import Examples, Group

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
        """Says what answers tell of records.

        residuals: signed. loss: minus their mean square, so that higher says member. p: the normal
        density of the target about the answer, as a share of the highest. steps: how many released
        values the answer lies off the one that is nearest the target.
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
        residual, and each of a few outputs by itself: a model may memorize one of them.
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
    also LiRA on signed residuals (online, by pull, offline), RMIA (online, offline), ratios
    of symbols, moved copies compared with shadows, and an ensemble of all.
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
        few = (perturbed_places(game, members), perturbed_places(game, nonmembers))
        losses = [
            _on_copies(game, residuals, examples, places)["loss"]
            for examples, places in zip(sets, few, strict=True)
        ]
        scores["moved copies"] = Scored(losses[0], losses[1], few, COPIES + 1)
    owned = game.auxiliary
    if (
        owned is not None
        and owned.labels is not None
        and owned.inputs.is_floating_point()
        and len(owned) >= QUANTILE_ROWS
    ):
        signals = {
            examples.name: (examples, _closeness(own["loss"]))
            for examples, own in zip(sets, plain, strict=True)
        }
        known = _closeness(scores_of(owned)["loss"])
        values = quantile_scores(owned, known, len(residuals.unit), signals, game.seed)
        scores["quantile"] = Scored(values[members.name], values[nonmembers.name], rows, queries)
    if game.shadows is not None and members.name in game.shadows.scores:
        comparison = ResidualComparison(game, game.shadows, members, nonmembers, queries)
        scores |= comparison.scores(scores)
    return scores


def _closeness(loss: Tensor) -> Tensor:
    """Returns minus the root of minus a loss: less of a tail. Shapes: (rows,) -> (rows,)."""
    return -loss.neg().sqrt()


def _over_copies(own: Tensor, moved: Tensor) -> Tensor:
    """Returns mean answers about records and their moved copies, of which near ones count most.

    Shapes: own (rows, outputs), moved (copies * rows, outputs) -> (rows, outputs) float64.
    """
    far = widths().double()
    weights = torch.cat([1 / far[:1], 1 / far])
    answers = torch.cat([own.unsqueeze(0), moved.unflatten(0, (len(far), -1))]).double()
    return torch.einsum("c,cro->ro", weights / weights.sum(), answers)


def _on_copies(game: Game, residuals: Residuals, examples: Examples, rows: Tensor) -> Signals:
    """Reads the mean answers about some records and their moved copies."""
    copies = Examples(f"moved {examples.name}", perturbed_rows(game, examples.inputs[rows]))
    own, moved = game.ask(examples).distribution[rows], game.ask(copies).distribution
    return residuals.signals(_over_copies(own, moved), game.labels(examples)[rows])


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
        residuals = target["residuals"], shadows["residuals"], trained_on
        scores = {
            "LiRA": _over_outputs(lira, *residuals),
            "LiRA by pull": _over_outputs(lira_by_pull, *residuals),
            "LiRA offline": _over_outputs(lira_half_way, *residuals),
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
        columns = [_closeness(signals["loss"]), *(compared[name] for name in kept)]
        return torch.stack([column.double() for column in columns], 1)

    def _label_only(self, plain: Mapping[str, Scored]) -> dict[str, Scored]:
        """Compares the answers about moved copies with the shadows' answers about them."""
        if "moved copies" not in plain or self.members.name not in self.shadows.perturbed:
            return {}
        places = plain["moved copies"].places
        pairs = list(zip(self.sets, places, strict=True))
        target = torch.cat(
            [_on_copies(self.game, self.residuals, *pair)["residuals"] for pair in pairs]
        )
        shadows = torch.cat([self._shadows_on_copies(*pair) for pair in pairs], 1)
        trained_on = torch.cat(
            [self.shadows.trained_on[examples.name][:, : len(rows)] for examples, rows in pairs], 1
        )
        values = _over_outputs(lira_by_pull, target, shadows, trained_on)
        count = len(places[0])
        return {
            "moved copies against shadows": Scored(
                values[:count], values[count:], places, COPIES + 1, self.shadows.count
            )
        }

    def _shadows_on_copies(self, examples: Examples, rows: Tensor) -> Tensor:
        """Reads what the shadows answer likewise. Shapes: -> (shadows, rows, outputs)."""
        inputs, targets = examples.inputs[rows], self.game.labels(examples)[rows]
        questions = torch.cat([inputs, perturbed_rows(self.game, inputs)])
        residuals = []
        for scores, of_copies in zip(
            self.shadows.scores[examples.name], self.shadows.perturbed[examples.name], strict=True
        ):
            both = torch.cat([scores[: len(rows)], of_copies.flatten(0, 1)])
            answers = defended(self.game.shield, both, questions).distribution
            mean = _over_copies(answers[: len(rows)], answers[len(rows) :])
            residuals.append(self.residuals.signals(mean, targets)["residuals"])
        return torch.stack(residuals)


def _over_outputs(
    likelihood: Callable[[Tensor, Tensor, Tensor], Tensor],
    target: Tensor,
    shadows: Tensor,
    trained_on: Tensor,
) -> Tensor:
    """Adds up the log ratios of all outputs.

    Shapes: target (rows, outputs), shadows (shadows, rows, outputs) -> (rows,).
    """
    outputs = target.shape[1]
    each = trained_on.repeat_interleave(outputs, 1)
    ratios = likelihood(target.flatten(), shadows.flatten(1), each)
    return ratios.reshape(-1, outputs).sum(1)


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
