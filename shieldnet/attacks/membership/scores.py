"""All scores of a record by the answers about it; a higher score says member."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from shieldnet.attacks.base import Answers, Game, defended
from shieldnet.attacks.membership.ensemble import ensemble
from shieldnet.attacks.membership.likelihood import (
    OFFLINE,
    info_rmia,
    lira,
    lira_offline,
    symbol_ratio,
)
from shieldnet.attacks.membership.perturbations import COPIES, max_perturbed_rows, perturbed
from shieldnet.attacks.membership.quantile import MIN_ROWS as QUANTILE_ROWS
from shieldnet.attacks.membership.quantile import quantile_scores
from shieldnet.attacks.membership.scored import Population, Scored, Signals
from shieldnet.attacks.shadow_answers import Shadows
from shieldnet.data.examples import Examples, reference_rows

MAX_SYMBOLS = 512
"""Up to so many different answers, a quarter of the records at most, are symbols: what hardly ever
comes again has no frequency to compare."""

_MAX_LOG_ODDS = 3.0  # log odds of p = .95, which one decimal rounds to 1
_STAND_INS = 4  # shadows that stand for the target while the ensemble learns


def log_probabilities(answers: Answers, floor: float = 1e-300) -> Tensor:
    """Returns log p without clipping, from the logits where they were released.

    floor: what a released zero reads as.
    Shapes: -> (rows, classes) float64.
    """
    if answers.logits is not None:
        return answers.logits.double().log_softmax(-1)
    return answers.distribution.double().clamp_min(floor).log()


def membership_scores(log_p: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Scores each row; a higher score says member. Shapes: (n, K), (n,) -> each (n,).

    loss: log p_y - log of the sum of the others (Yeom 2018; unclipped as in Carlini 2022).
    entropy: minus the answer's entropy (Salem 2019). modified entropy: entropy that knows the
    label (Song and Mittal 2021). correctness gap: whether the label is right (Yeom 2018).
    capped loss: loss that calls all sure answers equal: the surest are not the members.
    """
    own = labels.unsqueeze(-1)
    true = log_p.gather(-1, own).squeeze(-1)
    others = log_p.scatter(-1, own, -torch.inf).logsumexp(-1)
    p = log_p.exp()
    # log(1 - p) of every class but the true one, whose p stays below 1 where others have mass.
    log_rest = torch.log1p(-p.clamp_max(1 - 1e-16)).scatter(-1, own, 0.0)
    return {
        "loss": true - others,
        "capped loss": (true - others).clamp_max(_MAX_LOG_ODDS),
        "entropy": (p * log_p).sum(-1),
        "modified entropy": others.exp() * true + (p * log_rest).sum(-1),
        "correctness gap": (log_p.argmax(-1) == labels).double(),
    }


def all_scores(
    game: Game, members: Examples, nonmembers: Examples, queries: int
) -> dict[str, Scored]:
    """Scores members and nonmembers in every way that the game allows.

    Labels were checked. Ways: those of ``membership_scores``; label-only on perturbed copies;
    quantile regression where the adversary owns labeled rows; with shadows also LiRA (online,
    offline, on modified entropy), RMIA (online, offline), ratios of symbols, label-only compared
    with shadows, and an ensemble of all.
    """
    floor = _floor(game, queries)
    rows = (torch.arange(len(members)), torch.arange(len(nonmembers)))
    of_members, of_nonmembers = (
        membership_scores(
            log_probabilities(game.ask(examples, queries), floor), game.labels(examples)
        )
        for examples in (members, nonmembers)
    )
    scores = {
        name: Scored(of_members[name], of_nonmembers[name], rows, queries) for name in of_members
    }
    if queries == 1 and members.inputs.is_floating_point():
        scores["label only"] = _label_only(game, members, nonmembers)
    auxiliary = game.auxiliary
    if (
        auxiliary is not None
        and auxiliary.labels is not None
        and auxiliary.inputs.is_floating_point()
        and len(auxiliary) >= QUANTILE_ROWS
    ):
        owned_signal = membership_scores(
            log_probabilities(game.ask(auxiliary, queries), floor), game.labels(auxiliary)
        )["loss"]
        signals = {
            members.name: (members, of_members["loss"]),
            nonmembers.name: (nonmembers, of_nonmembers["loss"]),
        }
        quantile = quantile_scores(auxiliary, owned_signal, game.classes, signals, game.seed)
        scores["quantile"] = Scored(
            quantile[members.name], quantile[nonmembers.name], rows, queries
        )
    if game.shadows is not None and members.name in game.shadows.scores:
        comparison = ShadowComparison(game, game.shadows, members, nonmembers, queries)
        scores |= comparison.scores(scores)
    return scores


def pooled_scores(game: Game, of: "type[ShadowComparison] | None" = None) -> dict[str, Scored]:
    """Scores the records of shadows that are set aside as targets, by what the others say.

    Members of such a target are the records that trained it. A quarter of the shadows are targets
    and none of them is compared with: nothing that is scored helps to score.
    """
    shadows, sets = game.shadows, (game.members, game.nonmembers)
    if shadows is None or shadows.weaker or shadows.count < 2 * _STAND_INS:
        return {}
    comparison = (of or ShadowComparison)(game, shadows, *sets, 1)
    signals = comparison.shadow_signals()
    trained_on = torch.cat([shadows.trained_on[examples.name] for examples in sets], 1)
    targets = shadows.count // 4
    shadow_signals = {name: values[targets:] for name, values in signals.items()}
    population = None
    if game.auxiliary is not None and "auxiliary" in shadows.scores:
        population = comparison.signals_about(game.auxiliary)["p"]
    scores: dict[str, list[Tensor]] = {}
    for target in range(targets):
        target_signals = {name: values[target] for name, values in signals.items()}
        if population is None:
            beaten = target_signals["p"], shadow_signals["p"], trained_on[targets:]
        else:
            none = shadows.trained_on["auxiliary"][targets:]
            beaten = population[target], population[targets:], none
        compared = comparison.compare(target_signals, shadow_signals, trained_on[targets:], beaten)
        for name, values in compared.items():
            scores.setdefault(name, []).append(values)
    truth = trained_on[:targets]
    nowhere = (torch.empty(0, dtype=torch.int64),) * 2
    return {
        name: Scored(
            torch.stack(values)[truth],
            torch.stack(values)[~truth],
            nowhere,
            1,
            shadows.count - targets,
        )
        for name, values in scores.items()
        if len(values) == targets  # symbols are compared only where every target has few
    }


def _floor(game: Game, queries: int) -> float:
    """Returns half of the least that was released above zero: what a zero may well stand for."""
    smallest = 1.0
    for examples in game.reference:
        released = game.ask(examples, queries).distribution
        smallest = min(smallest, float(released[released > 0].min()))
    return max(smallest / 2, 1e-300)


def _label_only(game: Game, members: Examples, nonmembers: Examples) -> Scored:
    """Counts on how many perturbed copies of a record the released winner is its label."""
    places = tuple(_perturbed_places(game, examples) for examples in (members, nonmembers))
    shares = []
    for examples, rows in zip((members, nonmembers), places, strict=True):
        inputs, labels = examples.inputs[rows], game.labels(examples)[rows]
        copies = Examples(f"perturbed {examples.name}", _perturbed(game, inputs))
        winners = game.ask(copies).distribution.argmax(-1).unflatten(0, (COPIES, -1))
        first = game.ask(examples).distribution.argmax(-1)[rows]
        shares.append(_share(torch.cat([first.unsqueeze(0), winners]), labels))
    return Scored(shares[0], shares[1], (places[0], places[1]), COPIES + 1)


def _share(winners: Tensor, labels: Tensor) -> Tensor:
    """Shapes: winners (copies, rows), labels (rows,) -> (rows,)."""
    return (winners == labels).double().mean(0)


def _perturbed(game: Game, inputs: Tensor) -> Tensor:
    """Shapes: (rows, ...) -> (copies * rows, ...)."""
    reference = reference_rows(game.members, game.nonmembers, game.auxiliary)
    return perturbed(inputs, reference, game.seed).flatten(0, 1)


def _perturbed_places(game: Game, examples: Examples) -> Tensor:
    rows = torch.arange(len(examples))
    places = rows if game.shadows is None else game.shadows.places.get(examples.name, rows)
    return places[: max_perturbed_rows(examples.inputs)]


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
        return _floor(self.game, self.queries)

    def scores(self, plain: Mapping[str, Scored]) -> dict[str, Scored]:
        """Returns the scores that need shadows, given those that need none."""
        places = tuple(self.shadows.places[examples.name] for examples in self.sets)
        trained_on = torch.cat(
            [self.shadows.trained_on[examples.name] for examples in self.sets], 1
        )
        shadow_signals = self.shadow_signals()
        target_signals = self._target_signals(places)
        population = self._population(target_signals, shadow_signals, trained_on)
        compared = self.compare(target_signals, shadow_signals, trained_on, population)
        label_only = self._label_only(plain)
        scores = {name: self._scored(values, places) for name, values in compared.items()}
        scores |= label_only
        stand_ins = self._stand_ins(shadow_signals, trained_on)
        if stand_ins is not None:
            columns = self.columns(target_signals, compared)
            scores["ensemble"] = self._scored(ensemble(*stand_ins, columns), places)
        return scores

    @property
    def sets(self) -> tuple[Examples, Examples]:
        return self.members, self.nonmembers

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

    def _target_signals(self, places: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Returns what the target says about the records. Shapes: -> each (rows,)."""
        parts = [
            self._signals(
                self.game.ask(examples, self.queries).at(rows), self.game.labels(examples)[rows]
            )
            for examples, rows in zip(self.sets, places, strict=True)
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
        questions = torch.cat([inputs, _perturbed(self.game, inputs)])
        shares = []
        for scores, of_copies in zip(
            self.shadows.scores[examples.name], self.shadows.perturbed[examples.name], strict=True
        ):
            both = torch.cat([scores[: len(rows)], of_copies.flatten(0, 1)])
            answers = defended(self.game.shield, both, questions)
            winners = answers.distribution.argmax(-1).unflatten(0, (COPIES + 1, -1))
            shares.append(_share(winners, labels))
        return torch.stack(shares)

    def _stand_ins(
        self, shadow_signals: dict[str, Tensor], trained_on: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Lets shadows stand for the target: scores whose truth the adversary knows.

        Shapes: -> (rows of all stand-ins, columns), (rows of all stand-ins,) bool.
        """
        count = self.shadows.count
        if count < 2 * _STAND_INS:
            return None
        columns, truth = [], []
        for target in range(_STAND_INS):
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
        return _compare(target, shadows, trained_on, population)

    def columns(self, signals: Signals, compared: Signals) -> Tensor:
        """Lays scores side by side for the ensemble. Shapes: -> (rows, columns) float64."""
        return _columns(signals, compared)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [part[name] for part in parts] for name in parts[0]}


def _compare(
    target: dict[str, Tensor],
    shadows: dict[str, Tensor],
    trained_on: Tensor,
    population: tuple[Tensor, Tensor, Tensor],
) -> dict[str, Tensor]:
    """Scores a target's signals against those of shadows. Shapes: -> each (rows,)."""
    entropy = "modified entropy"
    scores = {
        "LiRA": lira(target["loss"], shadows["loss"], trained_on),
        "LiRA offline": lira_offline(target["loss"], shadows["loss"], trained_on),
        "LiRA on entropy": lira(target[entropy], shadows[entropy], trained_on),
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


def _columns(signals: dict[str, Tensor], compared: dict[str, Tensor]) -> Tensor:
    """Lays scores side by side for the ensemble. Shapes: -> (rows, columns) float64."""
    names = ("loss", "modified entropy", "correctness gap")
    kept = ("LiRA", "LiRA offline", "LiRA on entropy", "RMIA", "RMIA offline")
    columns = [*(signals[name] for name in names), *(compared[name] for name in kept)]
    return torch.stack([column.double() for column in columns], 1)
