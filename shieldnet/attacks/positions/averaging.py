"""Asking the same thing again, where an answer has positions: fresh noise is averaged away."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.inversion.maps import MapInversion
from shieldnet.attacks.membership.metrics import AVERAGED_AT_POSITIONS
from shieldnet.attacks.membership.reporting import (
    MIN_ROWS,
    distinct_records,
    ranked,
    require_untold,
    within,
    worst,
)
from shieldnet.attacks.positions.box_numbers import Painted, numbers_in
from shieldnet.attacks.positions.maps import scored_maps
from shieldnet.attacks.positions.readings import extent_of
from shieldnet.attacks.positions.sequences import sequence_scores
from shieldnet.core.checks import whole
from shieldnet.findings.finding import Finding, NotApplicable, Outcome
from shieldnet.outputs.layout import Kind
from shieldnet.shield.module import Shield

_FLOOR = torch.finfo(torch.float32).tiny  # what a released zero reads as
Means = Literal["logits", "log p", "p"]
"""What is averaged of many answers."""
_LEAST = 4  # answers about each record


@dataclass(frozen=True)
class PositionAveraging(Attack):
    """Scores texts and maps, and inverts maps, by the means of many answers about each record.

    Means are taken of released logits, of the logarithms of released probabilities where noise on
    logits comes last, else of the probabilities. The worst score of members is reported as
    ``membership.sequences.averaged.N`` or ``membership.maps.averaged.N``. Inputs are read as by
    ``MapInversion``, as ``averaging.map.N``.

    queries: answers about each record, at most. numbers: that are drawn in all, at most; large
    answers are asked for less often. reading: how inputs are read from the means.
    Errors: NotApplicable where a shield gives the same answer every time, or where answers are too
        large to be asked for four times.
    NOT promised: prompts and completions of a text are read from single answers; no shadows stand
    beside the means.
    """

    at_positions = True
    metrics = (
        *AVERAGED_AT_POSITIONS,
        replace(
            MapInversion.metrics[0],
            name="averaging.map.*",
            title="leakage of a map, averaged",
            headline=False,
        ),
    )
    queries: int = 64
    numbers: int = 2**25
    reading: MapInversion = MapInversion()  # noqa: RUF009  # frozen

    def __post_init__(self) -> None:
        whole("queries", self.queries, low=2)
        whole("numbers", self.numbers, low=1)

    def __call__(self, game: Game) -> Outcome:
        if game.shield.deterministic:
            raise NotApplicable("the shield gives the same answer every time")
        if game.is_vector:
            kind = game.shield.chain.layout.kind
            raise NotApplicable(f"it reads distributions, the model gives {kind}")
        queries = self._queries(game)
        means = averaged(game, queries)
        findings: list[Finding] = []
        untested = []
        for what, run in (("membership", _membership), ("inversion", self._inversion)):
            try:
                findings.append(run(means, queries))
            except NotApplicable as reason:
                untested.append(f"averaging at positions, {what}: {reason}")
        if not findings:
            raise NotApplicable("; ".join(untested))
        return Outcome(findings=tuple(findings), untested=tuple(untested))

    def _queries(self, game: Game) -> int:
        """Returns how often each record can be asked about."""
        extent = extent_of(game)
        rows = sum(len(part) for part in game.reference) + len(game.members) + len(game.nonmembers)
        each = rows * extent.classes * math.prod(extent.positions)
        queries = min(self.queries, self.numbers // each)
        if queries < min(self.queries, _LEAST):
            raise NotApplicable(
                f"{_LEAST} answers about all records are {_LEAST * each:,} numbers, "
                f"at most {self.numbers:,} are drawn; {type(self).__name__}(numbers=...) sets that"
            )
        return queries

    def _inversion(self, means: Game, queries: int) -> Finding:
        outcome = self.reading(means)
        (found,) = (one for one in outcome.findings if one.name == "inversion.map")
        threat = replace(found.threat, queries=queries)
        return replace(found, name=f"averaging.map.{queries}", threat=threat)


def _membership(means: Game, queries: int) -> Finding:
    is_text = len(extent_of(means).positions) == 1
    means.require_rows(MIN_ROWS, means.members, means.nonmembers)
    require_untold(means)
    prefix = "membership.sequences" if is_text else "membership.maps"
    distinct = distinct_records(means)
    scored = {
        name: replace(within(distinct, scores), queries=queries)
        for name, scores in (sequence_scores if is_text else scored_maps)(means).items()
    }
    return worst(ranked(prefix, scored), f"{prefix}.averaged.{queries}")


def averaged(game: Game, queries: int) -> Game:
    """Returns the game about a shield, and a base behind it, whose answers are means of many.

    Shadows are left out: theirs are single answers.
    """
    classes = extent_of(game).classes
    means = _means_of(game.shield)
    shield = AveragedShield(game.shield, queries, classes, means)
    base = game.base
    if base is not None and not base.deterministic:
        base = AveragedShield(base, queries, classes, means)
    return replace(game, shield=shield, base=base, shadows=None, position_shadows=None)


def _means_of(shield: Shield) -> Means:
    """Chooses what is averaged: what the noise was added to, as far as it is released."""
    if shield.chain.releases_scores:
        return "logits"
    last = next(reversed(shield.chain.defenses), None)
    is_on_logits = last is not None and not last.deterministic and "logits" in last.accepts
    return "log p" if is_on_logits else "p"


class AveragedShield(Shield):
    """A shield that is asked many times about each row: its answers are means of distributions.

    shown: the shield itself, which answers.
    """

    def __init__(self, shown: Shield, queries: int, classes: int, means: Means) -> None:
        super().__init__(shown.model, shown.settings)
        self.shown, self.queries, self.number, self.means = shown, queries, classes, means
        # How attacks read the means: log p are logits, too.
        kind: Kind = "probabilities" if means == "p" else "logits"
        self.chain = Shield(nn.Identity(), outputs=kind, axis=-1).chain

    def forward(self, *args: Any, **kwargs: Any) -> Painted | Tensor:
        """Returns the means of the answers, and of the numbers beside a detector's maps.

        Shapes: the model's arguments -> (rows, *positions, classes).
        """
        total = beside = None
        for released in self._released_often(args, kwargs):
            part = self._part(self.shown.answer_in(released))
            total = part if total is None else total.add_(part)
            numbers = numbers_in(released)
            beside = numbers if beside is None or numbers is None else beside + numbers
        assert total is not None  # noqa: S101  # it is asked at least once
        means = total / self.queries
        return means if beside is None else Painted(means, beside / self.queries)

    def _part(self, answers: Tensor) -> Tensor:
        """Returns what is averaged of one answer. Shapes: -> (rows, *positions, classes)."""
        chain = self.shown.chain
        if self.means == "logits":
            return chain.rows(answers).double()
        p = chain.distribution(answers, self.number).double()
        return p.clamp_min(_FLOOR).log() if self.means == "log p" else p

    def _released_often(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
        """Yields answers with fresh noise; the model itself answers once where it can."""
        if type(self.shown) is not Shield or self.shown.micro_batch is not None:
            for _ in range(self.queries):
                yield self.shown(*args, **kwargs)
            return
        with torch.no_grad():
            output = self.shown.model(*args, **kwargs)
        for _ in range(self.queries):
            yield self.shown.defend(output, args)

    def answer_in(self, released: Any) -> Tensor:
        """Returns the means, of an answer."""
        means: Tensor = released.maps if isinstance(released, Painted) else released
        return means

    def bare(self, release: Any = None) -> Shield:
        """Returns the shield's model without defenses, which is asked once."""
        return self.shown.bare(release)

    def with_model(self, model: nn.Module) -> "AveragedShield":
        """Returns the same around another model."""
        shown = self.shown.with_model(model)
        return AveragedShield(shown, self.queries, self.number, self.means)
