"""Texts of the adversary's own choice, put to a language model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.attacks.base import Game
from shieldnet.attacks.positions.readings import extent_of, released
from shieldnet.attacks.positions.truth import MASK, token_columns
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable

_NUMBERS_AT_ONCE = 2**23  # of answers in memory


@dataclass(frozen=True)
class Asking:
    """Asks about the first tokens of a text.

    What follows them is filled up, with the padding token where there is one; a mask among the
    inputs leaves it out. Other inputs are those of the first record.
    Shapes: template (numbers,): a row of the model's inputs. columns: those of the tokens.
    """

    game: Game
    template: Tensor
    columns: slice
    mask: slice | None
    classes: int

    @classmethod
    def of(cls, game: Game, examples: Examples) -> "Asking":
        """Looks where a record has its tokens. Errors: NotApplicable where inputs are no texts."""
        extent = extent_of(game)
        columns = token_columns(examples, extent.positions)
        if columns is None or len(extent.positions) != 1:
            raise NotApplicable("it asks about tokens, and the inputs are no texts")
        rows = examples.inputs.flatten(1)
        return cls(game, rows[0], columns["tokens"], columns.get(MASK), extent.classes)

    @property
    def length(self) -> int:
        """Counts the tokens of a whole text."""
        return int(self.columns.stop - self.columns.start)

    def rows(self, tokens: Tensor) -> Tensor:
        """Returns the model's inputs for short texts. Shapes: (rows, length) -> (rows, numbers)."""
        rows = self.template.repeat(len(tokens), 1)
        start, end = self.columns.start, self.columns.start + tokens.shape[1]
        rows[:, end : self.columns.stop] = self.game.padding or 0
        rows[:, start:end] = tokens.to(rows)
        if self.mask is not None:
            rows[:, self.mask] = 0
            rows[:, self.mask.start : self.mask.start + tokens.shape[1]] = 1
        return rows

    def about(self, tokens: Tensor, floor: float) -> Tensor:
        """Returns the log of what is released of short texts: at every position, or at the last.

        floor: what a released zero reads as.
        Shapes: (rows, length) -> (rows, length or 1, classes) float32.
        """
        length = tokens.shape[1]
        seen = slice(length - 1 if self.game.last_alone else 0, length)
        size = max(1, _NUMBERS_AT_ONCE // (self.length * self.classes))
        parts = [
            released(self.game.shield, self.rows(part), self.classes)[:, seen].clamp_min(floor)
            for part in tokens.split(size)
        ]
        return torch.cat(parts).log().float()
