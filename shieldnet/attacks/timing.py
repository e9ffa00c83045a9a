"""Response times: what they tell of an answer, or of membership, on a model that is served."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from shieldnet.attacks.base import Attack, Game
from shieldnet.core.checks import whole
from shieldnet.core.errors import ConfigError, DataError
from shieldnet.core.statistics import CONFIDENCE, Interval, difference, proportion
from shieldnet.findings.finding import NO_USE, Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import Limit, Metric
from shieldnet.shield.module import Shield

MIN_PER_SECRET = 10
"""Inputs of each class, or of each side, from which something can be learned and measured."""
_NEIGHBORS = (1, 5, 15)
_WARM_UP = 20
_STANDARDS = ("AISVS 11.1.3", "AISVS 11.3.2")
_LIMIT = Limit(
    "max_timing_advantage",
    0.10,
    "how often response times tell the class, or membership, above the commonest guess",
    helps="Serve with response times in steps that are longer than the slowest answer "
    "(response_step_s), and a model whose time depends on shapes alone.",
    needs="times of a served model: attacks=(Timing(ask=...),)",
)


@dataclass(frozen=True)
class Timing(Attack):
    """Times a served model and tells the class of an input, or its membership, by that alone.

    Inputs are asked about one at a time, ``repeats`` times each, all in one random order, so that
    a slow moment of the machine falls on all of them. The adversary reads the quantiles of the
    times of an input and names what its nearest neighbors among half of the inputs are; how it
    reads them is chosen on that half, and it guesses the commonest where that is no worse there. It
    is scored on the other half. There are as many inputs of each class, or of each side.

    ask: sends one input and returns once the answer is there, whatever it returns, for instance
    over HTTP from the machine where a client would be. shield: the one that is served, if the audit
    has several or no defenses. rows: inputs of each set at most. clock: seconds, for tests.
    ``timing.class`` is the share of inputs whose class (the winner) is named, less the share of the
    commonest; ``timing.membership`` the same of members against nonmembers. Of many classes that is
    small where a single one shows, so ``timing.worst_class`` is about the one that shows most:
    the share of its inputs that are named, less the share of others that are named like it. Its
    interval is below 0.1 only for 40 checked inputs of each class: rows=80 times the classes.
    0: times tell nothing.
    NOT promised: the same times again, so no result is kept in a cache; that another adversary, a
    quieter machine or more repeats tell no more; anything of other side channels.
    Shapes: ask gets (1, ...) of the inputs.
    """

    metrics = (
        Metric(
            "timing.class",
            "class told by response times",
            "more",
            _LIMIT,
            standards=_STANDARDS,
        ),
        Metric(
            "timing.worst_class",
            "one class told by response times",
            "more",
            _LIMIT,
            standards=_STANDARDS,
        ),
        Metric(
            "timing.membership",
            "membership told by response times",
            "more",
            _LIMIT,
            standards=("AISVS 11.2.5", *_STANDARDS),
            rows="members and nonmembers",
        ),
    )
    is_repeatable: ClassVar[bool] = False
    ask: Callable[[Tensor], object] | None = field(default=None, repr=False)
    shield: Shield | None = field(default=None, repr=False, compare=False)
    repeats: int = 9
    rows: int = 200
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)

    def __post_init__(self) -> None:
        if self.ask is not None and not callable(self.ask):
            raise ConfigError(
                f"Expected ask as a function that sends one input, got {type(self.ask).__name__}."
            )
        whole("repeats", self.repeats, low=1)
        whole("rows", self.rows, low=2 * MIN_PER_SECRET)

    def __call__(self, game: Game) -> Outcome:
        if self.ask is None:
            raise NotApplicable(
                "it times a served model: pass Timing(ask=...), a function that sends one input"
            )
        self._require_served(game)
        generator = torch.Generator().manual_seed(game.seed)
        found, untested = [], []
        sets = (game.members, game.nonmembers)
        sides = torch.cat([torch.full((len(part),), side) for side, part in enumerate(sets)])
        secrets = {"timing.membership": (torch.cat([part.inputs for part in sets]), sides)}
        if not game.is_vector:
            own = game.nonmembers
            secrets = {"timing.class": (own.inputs, game.model_labels(own)), **secrets}
        for name, (inputs, truth) in secrets.items():
            chosen = balanced(truth, self.rows, generator)
            if len(truth[chosen].unique()) < 2:
                untested.append(
                    f"{name}: needs at least {MIN_PER_SECRET} inputs of each of two classes"
                )
                continue
            # In no order: who is asked first, to warm up, is of no class.
            chosen = chosen[torch.randperm(len(chosen), generator=generator)]
            times = self.timed(inputs[chosen], generator)
            found.append(self._finding(name, times, truth[chosen]))
            if name == "timing.class":
                found.append(self._worst_class(times, truth[chosen]))
        return Outcome(findings=tuple(found), untested=tuple(untested))

    def _require_served(self, game: Game) -> None:
        if self.shield is None and not game.shield.chain.stages:
            raise NotApplicable(
                "the undefended model is not what is served; if it is, pass "
                "Timing(ask=..., shield=...)"
            )
        if self.shield is not None and self.shield.settings != game.shield.settings:
            raise NotApplicable("another shield is served, with which it was timed")

    def timed(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Asks about every input, ``repeats`` times, in random order.

        Shapes: (rows, ...) -> (rows, repeats) seconds, in the order in which they were asked.
        Errors: DataError for a clock that ran backwards.
        """
        if self.ask is None:
            raise ConfigError("Expected ask=..., a function that sends one input.")
        count = len(inputs)
        for row in range(min(_WARM_UP, count)):
            self.ask(inputs[row : row + 1])
        order = torch.randperm(count * self.repeats, generator=generator) % count
        times: list[list[float]] = [[] for _ in range(count)]
        for row in order.tolist():
            query = inputs[row : row + 1].clone()
            start = self.clock()
            self.ask(query)
            times[row].append(self.clock() - start)
        measured = torch.tensor(times, dtype=torch.float64)
        if bool((measured < 0).any()):
            raise DataError("Expected a clock that never runs backwards, got a negative time.")
        return measured

    def _finding(self, name: str, times: Tensor, truth: Tensor) -> Finding:
        is_fit = halves(truth)
        fit, check = is_fit.nonzero().flatten(), (~is_fit).nonzero().flatten()
        features = readings(times)
        reading, neighbors = _best(features, truth, fit)
        commonest = truth[fit].mode().values
        said = commonest.expand(len(check))
        if neighbors:
            said = told(features[reading][check], features[reading][fit], truth[fit], neighbors)
        samples, chance = len(check), float((truth[check] == commonest).double().mean())
        share = proportion(int((said == truth[check]).sum()), samples)
        above = Interval(*(max(0.0, end - chance) for end in (share.value, share.low, share.high)))
        return Finding.of(
            name,
            above,
            samples=samples,
            baseline=0.0,
            threat=self._threat,
            source=f"nearest neighbors by {reading}" if neighbors else "the commonest guess",
            note=f"the commonest guess is right {chance:.2f}"
            + ("" if neighbors else f"; {NO_USE}"),
        )

    def _worst_class(self, times: Tensor, truth: Tensor) -> Finding:
        is_fit = halves(truth)
        fit, check = is_fit.nonzero().flatten(), (~is_fit).nonzero().flatten()
        features = readings(times)
        label, reading, neighbors = _best_told(features, truth, fit)
        own, said = truth[check] == label, torch.zeros(len(check), dtype=torch.bool)
        if neighbors:
            values, known = features[reading], (truth[fit] == label).unsqueeze(1)
            apart = torch.cdist(values[check], values[fit])
            said = shares(apart, known, neighbors)[:, 0] > known.double().mean()
        found = _advantage(said, own)
        above = Interval(*(max(0.0, end) for end in (found.value, found.low, found.high)))
        return Finding.of(
            "timing.worst_class",
            above,
            samples=int(own.sum()),
            baseline=0.0,
            threat=self._threat,
            source=f"nearest neighbors by {reading}" if neighbors else "no class",
            note=f"class {label}" if neighbors else NO_USE,
        )

    @property
    def _threat(self) -> Threat:
        return Threat(self.repeats, sees=f"response times of {self.repeats} queries per input")


def balanced(truth: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Draws as many rows of each class, of those with enough. Shapes: (n,) -> (at most rows,)."""
    classes, counts = truth.unique(return_counts=True)
    classes = classes[counts >= MIN_PER_SECRET][: rows // MIN_PER_SECRET]
    each = min([rows // max(len(classes), 1), *counts[counts >= MIN_PER_SECRET].tolist()])
    shuffled = torch.randperm(len(truth), generator=generator)
    parts = [shuffled[truth[shuffled] == label][:each] for label in classes]
    return torch.cat(parts) if parts else shuffled[:0]


def halves(truth: Tensor) -> Tensor:
    """Marks every other row of each class: what is learned from. Shapes: (n,) -> (n,) bool."""
    own = truth.unsqueeze(1) == truth
    return (own.tril().sum(1) % 2) == 1


def readings(times: Tensor) -> dict[str, Tensor]:
    """Lists what is read of the times of each input. Shapes: (n, repeats) -> each (n, features).

    On a scale of logarithms, as a slow moment lasts many times as long as an answer.
    """
    logs = times.clamp_min(1e-9).log()
    parts = {
        "the least time": logs.amin(1, keepdim=True),
        "the median": logs.median(1, keepdim=True).values,
        "the mean": logs.mean(1, keepdim=True),
    }
    quarters = logs.quantile(torch.tensor([0.0, 0.25, 0.5, 0.75], dtype=logs.dtype), 1).T
    spread = quarters.std(0).clamp_min(1e-12)
    return {**parts, "quantiles": (quarters - quarters.mean(0)) / spread}


def told(asked: Tensor, known: Tensor, truth: Tensor, neighbors: int) -> Tensor:
    """Names the commonest class of the nearest neighbors. Shapes: (m, f), (n, f), (n,) -> (m,)."""
    apart = torch.cdist(asked, known)
    near = apart.topk(min(neighbors, len(truth)), largest=False).indices
    return truth[near].mode(1).values


def _best(features: dict[str, Tensor], truth: Tensor, fit: Tensor) -> tuple[str, int]:
    """Chooses how times are read, each row by the others; no neighbors where that is no better."""
    best, right = ("", 0), int((truth[fit] == truth[fit].mode().values).sum())
    for name, values in features.items():
        apart = torch.cdist(values[fit], values[fit]).fill_diagonal_(torch.inf)
        ranked = apart.argsort(1)[:, : max(_NEIGHBORS)]
        for neighbors in _NEIGHBORS:
            said = truth[fit][ranked[:, : min(neighbors, len(fit) - 1)]].mode(1).values
            hits = int((said == truth[fit]).sum())
            if hits > right:
                best, right = (name, neighbors), hits
    return best


def shares(apart: Tensor, known: Tensor, neighbors: int) -> Tensor:
    """Returns the share of each class among the nearest. Shapes: (m, n), (n, k) bool -> (m, k)."""
    near = apart.topk(min(neighbors, apart.shape[1]), largest=False).indices
    return known[near].double().mean(1)


def _best_told(features: dict[str, Tensor], truth: Tensor, fit: Tensor) -> tuple[int, str, int]:
    """Chooses the class that shows most and how they are read, each row by the others.

    No neighbors where none shows surely, over all that are tried.
    """
    labels = truth[fit].unique()
    known = truth[fit].unsqueeze(1) == labels
    tried = len(labels) * len(features) * len(_NEIGHBORS)
    best, most = (int(labels[0]), "", 0), 0.0
    for name, values in features.items():
        apart = torch.cdist(values[fit], values[fit]).fill_diagonal_(torch.inf)
        for neighbors in _NEIGHBORS:
            said = shares(apart, known, min(neighbors, len(fit) - 1)) > known.double().mean(0)
            for place, label in enumerate(labels.tolist()):
                found = _advantage(said[:, place], known[:, place], tried)
                if found.low > 0 and found.value > most:
                    best, most = (label, name, neighbors), found.value
    return best


def _advantage(said: Tensor, own: Tensor, tried: int = 1) -> Interval:
    """Returns how much oftener a class is named for its own inputs than for others.

    tried: how many such intervals shall hold together. Shapes: (n,) bool.
    """
    confidence = 1 - (1 - CONFIDENCE) / tried
    rates = (
        proportion(int((said & part).sum()), int(part.sum()), confidence) for part in (own, ~own)
    )
    return difference(*rates)
