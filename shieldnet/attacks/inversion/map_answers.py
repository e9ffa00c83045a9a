"""What a shield released about rows at all positions, and in which ways it can be read."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from shieldnet.attacks.adversary.map_decoders import MAX_CHANNELS
from shieldnet.attacks.adversary.selection import MIN_ROWS
from shieldnet.attacks.base import Game
from shieldnet.attacks.positions.readings import answers_about, extent_of, joined, rows_at_once
from shieldnet.core.randomness import noise_about
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable

_MAX_ROWS = 1000
_MAX_NUMBERS = 2**26  # of the answers about one set
View = Callable[[], Tensor]
"""Makes one reading of the answers about all rows. Shapes: -> (rows, *positions, channels)."""


@dataclass(frozen=True)
class Answered:
    """Holds what the shield released about rows at all positions, and how it can be read.

    Shapes: p, logits (rows, *positions, classes); logits None where p says as much. least: the
    smallest p above zero. numbers: of a detector's boxes, (rows, WIDTH), else None.
    """

    p: Tensor
    logits: Tensor | None
    least: float
    numbers: Tensor | None = None

    @classmethod
    def of(cls, game: Game, *sets: Examples) -> "Answered":
        """Asks once about every row of these sets, in their order; floors are of the first set."""
        parts = [_answers(game, examples) for examples in sets]
        first = parts[0][0]
        p, logits, numbers = zip(*parts, strict=True)
        return cls(torch.cat(p), joined(logits), float(first[first > 0].min()), joined(numbers))

    def labels(self) -> Tensor:
        """Returns the released winners. Shapes: -> (rows, *positions, classes), 0 or 1."""
        return one_hot(self.p.argmax(-1), self.p.shape[-1]).float()

    def _log_p(self, floor: float) -> Tensor:
        return self.p.clamp_min(floor).log()

    @property
    def views(self) -> dict[str, View]:
        """Lists the readings that say more than the winners; none where nothing more is released.

        Released zeros, and all that is smaller than a floor, are read as the floor.
        """
        if self.logits is None and torch.equal(self.p, self.labels()):
            return {}
        floors = {"1e-3": 1e-3, "half the least": max(self.least / 2, 1e-30)}
        views: dict[str, View] = {"p": lambda: self.p}
        for words, floor in floors.items():
            views[f"log p above {words}"] = partial(self._log_p, floor)
        logits = self.logits
        if logits is not None:
            views["logits"] = lambda: logits
        every = tuple(views.values())
        if len(every) * self.p.shape[-1] <= MAX_CHANNELS:
            views["all readings"] = lambda: torch.cat([view() for view in every], -1)
        return views


def _answers(game: Game, examples: Examples) -> tuple[Tensor, Tensor | None, Tensor | None]:
    shield, extent = game.shield, extent_of(game)
    size = rows_at_once(extent, examples.inputs)
    p, logits, numbers = [], [], []
    with noise_about(examples.content, "map"):
        for rows in examples.inputs.split(size):
            answers, beside = answers_about(shield, rows)
            answers = answers.cpu()
            p.append(shield.chain.distribution(answers, extent.classes).float())
            numbers.append(beside)
            if shield.chain.releases_scores:
                logits.append(shield.chain.rows(answers).float())
    return torch.cat(p), torch.cat(logits) if logits else None, joined(numbers)


def own_images(game: Game) -> Examples:
    """Returns the rows that the adversary learns from. Errors: NotApplicable where there are none.

    Its maps are not among them.
    """
    return first_rows(game, game.owned(), _MAX_ROWS)


def first_rows(game: Game, examples: Examples, most: int) -> Examples:
    """Keeps the first rows, as many as their answers fit into memory."""
    numbers = _numbers(game)
    rows = min(most, _MAX_NUMBERS // max(numbers, examples.inputs[0].numel()))
    if rows < MIN_ROWS:
        raise NotApplicable(
            f"an answer of {numbers} numbers about {examples.inputs[0].numel()} is too large: "
            f"{_MAX_NUMBERS // MIN_ROWS} fit. Audit a model of smaller images"
        )
    return replace(examples, inputs=examples.inputs[:rows], labels=None)


def _numbers(game: Game) -> int:
    extent = extent_of(game)
    return extent.classes * math.prod(extent.positions)
