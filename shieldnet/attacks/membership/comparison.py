"""What the target says beside what shadows say, behind the same shield."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from shieldnet.attacks.answers import Answers, defended
from shieldnet.attacks.base import Game
from shieldnet.attacks.membership.borrowing import lira_borrowing
from shieldnet.attacks.membership.ensemble import ensemble
from shieldnet.attacks.membership.label_only import perturbed_rows, share
from shieldnet.attacks.membership.likelihood import (
    OFFLINE,
    info_rmia,
    lira,
    lira_offline,
    symbol_ratio,
)
from shieldnet.attacks.membership.perturbations import COPIES
from shieldnet.attacks.membership.scored import Population, Scored, Signals
from shieldnet.attacks.membership.signals import floor_of, log_probabilities, membership_scores
from shieldnet.attacks.shadow_answers import Shadows
from shieldnet.data.examples import Examples

MAX_SYMBOLS = 512
"""Up to so many different answers, a quarter of the records at most, are symbols: what hardly ever
comes again has no frequency to compare."""

STAND_INS = 4
"""Shadows that stand for the target while the ensemble learns."""


@dataclass(frozen=True)
class ShadowComparison:
    """Compares what the target says with what the shadows say, behind the same shield."""

    game: Game
    shadows: Shadows
    members: Examples
    nonmembers: Examples
    queries: int

    @cached_property
    def floor(self) -> float:
        """Returns what a released zero reads as."""
        return floor_of(self.game, self.queries)

    def scores(self, plain: Mapping[str, Scored]) -> dict[str, Scored]:
        """Returns the scores that need shadows, given those that need none."""
        places = self.places
        trained_on = torch.cat(
            [self.shadows.trained_on[examples.name] for examples in self.sets], 1
        )
        shadow_signals = self.shadow_signals()
        target_signals = self.target_signals()
        population = self._population(target_signals, shadow_signals, trained_on)
        compared = self.compare(target_signals, shadow_signals, trained_on, population)
        label_only = self._label_only(plain)
        scores = {name: self._scored(values, places) for name, values in compared.items()}
        scores |= label_only
        guided = self.shadows.guided
        if guided:
            told = target_signals["loss"], shadow_signals["loss"][-guided:], trained_on[-guided:]
            scores["cascade"] = self._scored(lira_borrowing(*told), places)
        stand_ins = self._stand_ins(shadow_signals, trained_on)
        if stand_ins is not None:
            columns = self.columns(target_signals, compared)
            scores["ensemble"] = self._scored(ensemble(*stand_ins, columns), places)
        return scores

    @property
    def sets(self) -> tuple[Examples, Examples]:
        return self.members, self.nonmembers

    @property
    def places(self) -> tuple[Tensor, ...]:
        return tuple(self.shadows.places[examples.name] for examples in self.sets)

    def _scored(self, values: Tensor, places: tuple[Tensor, ...]) -> Scored:
        count = len(places[0])
        return Scored(
            values[:count],
            values[count:],
            (places[0], places[1]),
            self.queries,
            self.shadows.count,
        )

    def _signals(self, answers: Answers, labels: Tensor) -> dict[str, Tensor]:
        log_p = log_probabilities(answers, self.floor)
        signals = membership_scores(log_p, labels)
        signals["p"] = log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1).exp()
        return signals

    def target_signals(self) -> dict[str, Tensor]:
        """Returns what the target says about the records. Shapes: -> each (rows,)."""
        parts = [
            self._signals(
                self.game.ask(examples, self.queries).at(rows), self.game.labels(examples)[rows]
            )
            for examples, rows in zip(self.sets, self.places, strict=True)
        ]
        return {name: torch.cat(values) for name, values in _joined(parts).items()}

    def shadow_signals(self) -> dict[str, Tensor]:
        """Returns what the shadows say behind the shield. Shapes: -> each (shadows, rows)."""
        parts = [self.signals_about(examples) for examples in self.sets]
        return {name: torch.cat(values, 1) for name, values in _joined(parts).items()}

    def signals_about(self, examples: Examples) -> dict[str, Tensor]:
        """Returns what the shadows say about one set. Shapes: -> each (shadows, rows)."""
        rows = self.shadows.places[examples.name]
        inputs, labels = examples.inputs[rows], self.game.labels(examples)[rows]
        parts = [
            self._signals(defended(self.game.shield, scores, inputs, self.queries), labels)
            for scores in self.shadows.scores[examples.name]
        ]
        return {name: torch.stack(values) for name, values in _joined(parts).items()}

    def _population(
        self,
        target_signals: dict[str, Tensor],
        shadow_signals: dict[str, Tensor],
        trained_on: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what is said of other records: the adversary's own, or else all of these."""
        owned = self.game.auxiliary
        if owned is None or "auxiliary" not in self.shadows.scores:
            return target_signals["p"], shadow_signals["p"], trained_on
        rows = self.shadows.places["auxiliary"]
        target = self._signals(
            self.game.ask(owned, self.queries).at(rows), self.game.labels(owned)[rows]
        )
        return target["p"], self.signals_about(owned)["p"], self.shadows.trained_on["auxiliary"]

    def _label_only(self, plain: Mapping[str, Scored]) -> dict[str, Scored]:
        """Compares the label-only shares with the shadows' shares, as symbols."""
        if "label only" not in plain or self.members.name not in self.shadows.perturbed:
            return {}
        target = plain["label only"]
        shadow_shares, trained_on = [], []
        for examples, rows in zip(self.sets, target.places, strict=True):
            shadow_shares.append(self._shares(examples, rows))
            trained_on.append(self.shadows.trained_on[examples.name][:, : len(rows)])
        target_shares = torch.cat([target.members, target.nonmembers])
        values = symbol_ratio(target_shares, torch.cat(shadow_shares, 1), torch.cat(trained_on, 1))
        count = len(target.members)
        return {
            "label only against shadows": Scored(
                values[:count], values[count:], target.places, COPIES + 1, self.shadows.count
            )
        }

    def _shares(self, examples: Examples, rows: Tensor) -> Tensor:
        """Returns the shadows' label-only shares of some records. Shapes: -> (shadows, rows)."""
        inputs, labels = examples.inputs[rows], self.game.labels(examples)[rows]
        questions = torch.cat([inputs, perturbed_rows(self.game, inputs)])
        shares = []
        for scores, of_copies in zip(
            self.shadows.scores[examples.name], self.shadows.perturbed[examples.name], strict=True
        ):
            both = torch.cat([scores[: len(rows)], of_copies.flatten(0, 1)])
            answers = defended(self.game.shield, both, questions)
            winners = answers.distribution.argmax(-1).unflatten(0, (COPIES + 1, -1))
            shares.append(share(winners, labels))
        return torch.stack(shares)

    def _stand_ins(
        self, shadow_signals: dict[str, Tensor], trained_on: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Lets shadows stand for the target: scores whose truth the adversary knows.

        Shapes: -> (rows of all stand-ins, columns), (rows of all stand-ins,) bool.
        """
        count = self.shadows.count - self.shadows.guided
        if count < 2 * STAND_INS:
            return None
        shadow_signals = {name: values[:count] for name, values in shadow_signals.items()}
        trained_on = trained_on[:count]
        columns, truth = [], []
        for target in range(STAND_INS):
            rest = torch.arange(count) != target
            target_signals = {name: values[target] for name, values in shadow_signals.items()}
            others = {name: values[rest] for name, values in shadow_signals.items()}
            population = target_signals["p"], others["p"], trained_on[rest]
            compared = self.compare(target_signals, others, trained_on[rest], population)
            columns.append(self.columns(target_signals, compared))
            truth.append(trained_on[target])
        return torch.cat(columns), torch.cat(truth)

    def compare(
        self, target: Signals, shadows: Signals, trained_on: Tensor, population: Population
    ) -> Signals:
        """Scores a target's signals against those of shadows. Shapes: -> each (rows,)."""
        return _compared(target, shadows, trained_on, population)

    def columns(self, signals: Signals, compared: Signals) -> Tensor:
        """Lays scores side by side for the ensemble. Shapes: -> (rows, columns) float64."""
        names = ("loss", "modified entropy", "correctness gap")
        kept = ("LiRA", "LiRA offline", "LiRA on entropy", "RMIA", "RMIA offline")
        columns = [*(signals[name] for name in names), *(compared[name] for name in kept)]
        return torch.stack([column.double() for column in columns], 1)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [part[name] for part in parts] for name in parts[0]}


def _compared(
    target: Signals, shadows: Signals, trained_on: Tensor, population: Population
) -> Signals:
    """Scores a target's signals against those of shadows. Shapes: -> each (rows,)."""
    entropy = "modified entropy"
    scores = {
        "LiRA": lira(target["loss"], shadows["loss"], trained_on),
        "LiRA offline": lira_offline(target["loss"], shadows["loss"], trained_on),
        "LiRA on entropy": lira(target[entropy], shadows[entropy], trained_on),
        "LiRA borrowing": lira_borrowing(target["loss"], shadows["loss"], trained_on),
        "LiRA proxy": lira_borrowing(target["loss"], shadows["loss"], trained_on, online=False),
        "RMIA": info_rmia(target["p"], shadows["p"], trained_on, population),
        "RMIA offline": info_rmia(
            target["p"], shadows["p"], trained_on, population, offline=OFFLINE
        ),
    }
    rounded = target["loss"].float().round(decimals=4)
    if len(rounded.unique()) <= min(MAX_SYMBOLS, len(rounded) // 4):
        scores["symbols"] = symbol_ratio(
            rounded, shadows["loss"].float().round(decimals=4), trained_on
        ).double()
    return scores
