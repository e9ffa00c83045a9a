"""Every way to score a record by what is said about it; a higher score says member."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shieldnet.attacks.base import Answers, Game, defended
from shieldnet.attacks.membership.likelihood import (
    OFFLINE,
    info_rmia,
    lira,
    lira_offline,
    symbol_ratio,
)
from shieldnet.attacks.membership.quantile import MIN_ROWS as QUANTILE_ROWS
from shieldnet.attacks.membership.quantile import quantile_scores
from shieldnet.attacks.membership.shadows import COPIES, most_moved, moved
from shieldnet.attacks.shadow_answers import Shadows
from shieldnet.data.examples import Examples, reference_rows

MAX_SYMBOLS = 512
"""Up to so many different answers, a quarter of the records at most, are symbols: what hardly ever
comes again has no frequency to compare."""

_MAX_LOG_ODDS = 3.0  # log odds of p = .95, which one decimal rounds to 1
_PUPILS = 4  # shadows that stand for the target while the ensemble learns


@dataclass(frozen=True)
class Scored:
    """Holds one attack's scores of members and nonmembers.

    places: which rows of the two sets were scored. queries: answers about each; shadows: models
    compared with.
    Shapes: members (m,), nonmembers (n,) float64; places (m,) and (n,).
    """

    members: Tensor
    nonmembers: Tensor
    places: tuple[Tensor, Tensor]
    queries: int
    shadows: int = 0


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


def all_scores(game: Game, one: Examples, other: Examples, queries: int) -> dict[str, Scored]:
    """Scores two sets in every way that the game allows: ``one`` are members, ``other`` are not.

    Labels were checked. Ways: those of ``membership_scores``; label-only on moved copies;
    quantile regression where the adversary owns labeled rows; with shadows also LiRA (online,
    offline, on modified entropy), RMIA (online, offline), ratios of symbols, label-only compared
    with shadows, and an ensemble of all.
    """
    floor = _floor(game, queries)
    everywhere = (torch.arange(len(one)), torch.arange(len(other)))
    plain = [
        membership_scores(
            log_probabilities(game.ask(examples, queries), floor), game.labels(examples)
        )
        for examples in (one, other)
    ]
    found = {name: Scored(plain[0][name], plain[1][name], everywhere, queries) for name in plain[0]}
    loss = {
        examples.name: scores["loss"] for examples, scores in zip((one, other), plain, strict=True)
    }
    if queries == 1 and one.inputs.is_floating_point():
        found["label only"] = _label_only(game, one, other)
    auxiliary = game.auxiliary
    if (
        auxiliary is not None
        and auxiliary.labels is not None
        and auxiliary.inputs.is_floating_point()
        and len(auxiliary) >= QUANTILE_ROWS
    ):
        said = membership_scores(
            log_probabilities(game.ask(auxiliary, queries), floor), game.labels(auxiliary)
        )["loss"]
        asked = {examples.name: (examples, loss[examples.name]) for examples in (one, other)}
        scores = quantile_scores(auxiliary, said, game.classes, asked, game.seed)
        found["quantile"] = Scored(scores[one.name], scores[other.name], everywhere, queries)
    if game.shadows is not None and one.name in game.shadows.scores:
        found |= _Compared(game, game.shadows, one, other, queries, floor).scores(found)
    return found


def pooled_scores(game: Game) -> dict[str, Scored]:
    """Scores the records of shadows that are set aside as targets, by what the others say.

    Members of such a target are the records that trained it. A quarter of the shadows are targets
    and none of them is compared with: nothing that is scored helps to score.
    """
    shadows, sets = game.shadows, (game.members, game.nonmembers)
    if shadows is None or shadows.weaker or shadows.count < 2 * _PUPILS:
        return {}
    compared = _Compared(game, shadows, *sets, 1, _floor(game, 1))
    heard = compared.heard(sets)
    inside = torch.cat([shadows.inside[examples.name] for examples in sets], 1)
    targets = shadows.count // 4
    others = {name: values[targets:] for name, values in heard.items()}
    population = None
    if game.auxiliary is not None and "auxiliary" in shadows.scores:
        population = compared.shadows_on(game.auxiliary)["p"]
    found: dict[str, list[Tensor]] = {}
    for target in range(targets):
        said = {name: values[target] for name, values in heard.items()}
        if population is None:
            beaten = said["p"], others["p"], inside[targets:]
        else:
            none = shadows.inside["auxiliary"][targets:]
            beaten = population[target], population[targets:], none
        for name, values in _compare(said, others, inside[targets:], beaten).items():
            found.setdefault(name, []).append(values)
    truth = inside[:targets]
    nowhere = (torch.empty(0, dtype=torch.int64),) * 2
    return {
        name: Scored(
            torch.stack(values)[truth],
            torch.stack(values)[~truth],
            nowhere,
            1,
            shadows.count - targets,
        )
        for name, values in found.items()
        if len(values) == targets  # symbols are compared only where every target has few
    }


def _floor(game: Game, queries: int) -> float:
    """Returns half of the least that was released above zero: what a zero may well stand for."""
    least = 1.0
    for examples in game.reference:
        stated = game.ask(examples, queries).distribution
        least = min(least, float(stated[stated > 0].min()))
    return max(least / 2, 1e-300)


def _label_only(game: Game, one: Examples, other: Examples) -> Scored:
    """Counts on how many moved copies of a record the released winner is its label."""
    places = tuple(_moved_places(game, examples) for examples in (one, other))
    shares = []
    for examples, rows in zip((one, other), places, strict=True):
        inputs, labels = examples.inputs[rows], game.labels(examples)[rows]
        copies = Examples(f"moved {examples.name}", _moved(game, inputs))
        winners = game.ask(copies).distribution.argmax(-1).unflatten(0, (COPIES, -1))
        first = game.ask(examples).distribution.argmax(-1)[rows]
        shares.append(_share(torch.cat([first.unsqueeze(0), winners]), labels))
    return Scored(shares[0], shares[1], (places[0], places[1]), COPIES + 1)


def _share(winners: Tensor, labels: Tensor) -> Tensor:
    """Shapes: winners (copies, rows), labels (rows,) -> (rows,)."""
    return (winners == labels).double().mean(0)


def _moved(game: Game, inputs: Tensor) -> Tensor:
    """Shapes: (rows, ...) -> (copies * rows, ...)."""
    reference = reference_rows(game.members, game.nonmembers, game.auxiliary)
    return moved(inputs, reference, game.seed).flatten(0, 1)


def _moved_places(game: Game, examples: Examples) -> Tensor:
    every = torch.arange(len(examples))
    chosen = every if game.shadows is None else game.shadows.places.get(examples.name, every)
    return chosen[: most_moved(examples.inputs)]


@dataclass(frozen=True)
class _Compared:
    """Compares what the target says with what the shadows say, behind the same shield."""

    game: Game
    shadows: Shadows
    one: Examples
    other: Examples
    queries: int
    floor: float

    def scores(self, found: Mapping[str, Scored]) -> dict[str, Scored]:
        """Returns the scores that need shadows, given those that need none."""
        sets = (self.one, self.other)
        places = tuple(self.shadows.places[examples.name] for examples in sets)
        inside = torch.cat([self.shadows.inside[examples.name] for examples in sets], 1)
        heard = self.heard(sets)
        said = self._said(sets, places)
        population = self._population(said, heard, inside)
        compared = _compare(said, heard, inside, population)
        moved_shares = self._moved(sets, found, places)
        scored = {name: self._scored(value, places) for name, value in compared.items()}
        scored |= moved_shares
        pupils = self._pupils(heard, inside)
        if pupils is not None:
            scored["ensemble"] = self._scored(
                _ensemble(pupils[0], pupils[1], _columns(said, compared)), places
            )
        return scored

    def _scored(self, values: Tensor, places: tuple[Tensor, ...]) -> Scored:
        count = len(places[0])
        return Scored(
            values[:count],
            values[count:],
            (places[0], places[1]),
            self.queries,
            self.shadows.count,
        )

    def _read(self, answers: Answers, labels: Tensor) -> dict[str, Tensor]:
        log_p = log_probabilities(answers, self.floor)
        scores = membership_scores(log_p, labels)
        scores["p"] = log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1).exp()
        return scores

    def _said(self, sets: tuple[Examples, ...], places: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Returns what the target says about the records. Shapes: -> each (rows,)."""
        parts = [
            self._read(
                self.game.ask(examples, self.queries).at(rows), self.game.labels(examples)[rows]
            )
            for examples, rows in zip(sets, places, strict=True)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def heard(self, sets: tuple[Examples, ...]) -> dict[str, Tensor]:
        """Returns what the shadows say behind the shield. Shapes: -> each (shadows, rows)."""
        return {
            name: torch.cat(values, 1)
            for name, values in _joined([self.shadows_on(examples) for examples in sets]).items()
        }

    def shadows_on(self, examples: Examples) -> dict[str, Tensor]:
        rows = self.shadows.places[examples.name]
        inputs, labels = examples.inputs[rows], self.game.labels(examples)[rows]
        read = [
            self._read(defended(self.game.shield, scores, inputs, self.queries), labels)
            for scores in self.shadows.scores[examples.name]
        ]
        return {name: torch.stack([one[name] for one in read]) for name in read[0]}

    def _population(
        self, said: dict[str, Tensor], heard: dict[str, Tensor], inside: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what is said of other records: the adversary's own, or else all of these."""
        owned = self.game.auxiliary
        if owned is None or "auxiliary" not in self.shadows.scores:
            return said["p"], heard["p"], inside
        rows = self.shadows.places["auxiliary"]
        target = self._read(
            self.game.ask(owned, self.queries).at(rows), self.game.labels(owned)[rows]
        )
        return target["p"], self.shadows_on(owned)["p"], self.shadows.inside["auxiliary"]

    def _moved(
        self, sets: tuple[Examples, ...], found: Mapping[str, Scored], places: tuple[Tensor, ...]
    ) -> dict[str, Scored]:
        """Compares the label-only shares with the shadows' shares, as symbols."""
        if "label only" not in found or self.one.name not in self.shadows.moved:
            return {}
        plain = found["label only"]
        heard, inside = [], []
        for examples, rows in zip(sets, plain.places, strict=True):
            inputs, labels = examples.inputs[rows], self.game.labels(examples)[rows]
            copies = _moved(self.game, inputs)
            count = len(rows)
            shares = []
            for first, others in zip(
                self.shadows.scores[examples.name],
                self.shadows.moved[examples.name],
                strict=True,
            ):
                scores = torch.cat([first[:count], others.flatten(0, 1)])
                answers = defended(self.game.shield, scores, torch.cat([inputs, copies]))
                winners = answers.distribution.argmax(-1).unflatten(0, (COPIES + 1, -1))
                shares.append(_share(winners, labels))
            heard.append(torch.stack(shares))
            inside.append(self.shadows.inside[examples.name][:, :count])
        said = torch.cat([plain.members, plain.nonmembers])
        values = symbol_ratio(said, torch.cat(heard, 1), torch.cat(inside, 1))
        count = len(plain.members)
        return {
            "label only against shadows": Scored(
                values[:count], values[count:], plain.places, COPIES + 1, self.shadows.count
            )
        }

    def _pupils(self, heard: dict[str, Tensor], inside: Tensor) -> tuple[Tensor, Tensor] | None:
        """Lets shadows stand for the target: scores whose truth the adversary knows.

        Shapes: -> (rows of all pupils, columns), (rows of all pupils,) bool.
        """
        count = self.shadows.count
        if count < 2 * _PUPILS:
            return None
        columns, truth = [], []
        for pupil in range(_PUPILS):
            rest = torch.arange(count) != pupil
            said = {name: values[pupil] for name, values in heard.items()}
            others = {name: values[rest] for name, values in heard.items()}
            population = said["p"], others["p"], inside[rest]
            compared = _compare(said, others, inside[rest], population)
            columns.append(_columns(said, compared))
            truth.append(inside[pupil])
        return torch.cat(columns), torch.cat(truth)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [part[name] for part in parts] for name in parts[0]}


def _compare(
    said: dict[str, Tensor],
    heard: dict[str, Tensor],
    inside: Tensor,
    population: tuple[Tensor, Tensor, Tensor],
) -> dict[str, Tensor]:
    """Scores what a target says against what shadows say. Shapes: -> each (rows,)."""
    found = {
        "LiRA": lira(said["loss"], heard["loss"], inside),
        "LiRA offline": lira_offline(said["loss"], heard["loss"], inside),
        "LiRA on entropy": lira(said["modified entropy"], heard["modified entropy"], inside),
        "RMIA": info_rmia(said["p"], heard["p"], inside, population),
        "RMIA offline": info_rmia(said["p"], heard["p"], inside, population, offline=OFFLINE),
    }
    rounded = said["loss"].float().round(decimals=4)
    if len(rounded.unique()) <= min(MAX_SYMBOLS, len(rounded) // 4):
        found["symbols"] = symbol_ratio(
            rounded, heard["loss"].float().round(decimals=4), inside
        ).double()
    return found


def _columns(said: dict[str, Tensor], compared: dict[str, Tensor]) -> Tensor:
    """Lays scores side by side for the ensemble. Shapes: -> (rows, columns) float64."""
    names = ("loss", "modified entropy", "correctness gap")
    kept = ("LiRA", "LiRA offline", "LiRA on entropy", "RMIA", "RMIA offline")
    parts = [*(said[name] for name in names), *(compared[name] for name in kept)]
    return torch.stack([part.double() for part in parts], 1)


def _ensemble(learned: Tensor, truth: Tensor, asked: Tensor) -> Tensor:
    """Weighs scores by logistic regression on records whose truth is known.

    Shapes: learned (m, columns), truth (m,) bool, asked (n, columns) -> (n,).
    """
    center, spread = learned.mean(0), learned.std(0).clamp_min(1e-9)
    known, wanted = (((part - center) / spread).clamp(-6, 6) for part in (learned, asked))
    weights = torch.zeros(known.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    target = truth.double()
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logit = known @ weights[1:] + weights[0]
        loss = nn.functional.binary_cross_entropy_with_logits(logit, target)
        loss = loss + 1e-3 * weights[1:].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return (wanted @ weights[1:] + weights[0]).detach()
