"""Candidates of a search: what the shield answers about them, and how far that is off."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.attacks.base import Game
from shieldnet.attacks.inversion.white_box import readings
from shieldnet.core.errors import AnswerError
from shieldnet.core.statistics import random_sums
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable

REPEATS = 4  # answers about each candidate, averaged, where the shield draws noise
_MAX_NUMBERS = 512  # of a reading; more of them are summed at random
_SUMS = 256
_CHECKED = 64  # rows that are asked about again
_SAME = 1e-3  # deviations of an answer, up to which it is the same again


@dataclass(frozen=True)
class Candidates:
    """Asks the shield about candidates, and reads answers in units of the adversary's own rows.

    view: the reading that is compared. unit: the deviation of its numbers; one for all numbers of
    an embedding, whose directions alone have a meaning. repeats: answers averaged about each.
    """

    game: Game
    view: str
    unit: Tensor
    repeats: int

    @classmethod
    def of(cls, game: Game, view: str) -> "Candidates":
        """Measures the units. Errors: NotApplicable where the same rows get other answers."""
        rows = readings(game, game.ask(game.owned()))[view]
        unit = rows.std(0)
        if game.shield.chain.layout.kind == "embeddings":
            unit = unit.square().mean().sqrt().expand_as(unit)
        unit = unit.where(unit > 1e-6, 1.0)
        is_fixed = game.shield.deterministic
        candidates = cls(game, view, unit, 1 if is_fixed else REPEATS)
        if is_fixed:
            candidates._require_repeatable(game.owned())
        return candidates

    def about(self, examples: Examples) -> Tensor:
        """Reads the one answer that was released about each row. Shapes: -> (rows, numbers)."""
        return self._scaled(readings(self.game, self.game.ask(examples))[self.view])

    def ask(self, inputs: Tensor) -> Tensor:
        """Reads answers about candidates; NaN for those that the shield does not answer.

        Shapes: inputs (rows, ...) -> (rows, numbers).
        """
        return answered(self._ask, inputs, self._width)

    def _ask(self, inputs: Tensor) -> Tensor:
        answers = self.game.ask_once_more(inputs, self.repeats)
        return self._scaled(readings(self.game, answers)[self.view])

    @property
    def _width(self) -> int:
        return len(self.unit) if len(self.unit) <= _MAX_NUMBERS else _SUMS

    def _scaled(self, rows: Tensor) -> Tensor:
        scaled = (rows / self.unit).float()
        return scaled if len(self.unit) <= _MAX_NUMBERS else random_sums(scaled, _SUMS)

    def _require_repeatable(self, owned: Examples) -> None:
        """Raises NotApplicable for an encoder that is random: no search meets its answers."""
        few = owned.inputs[:_CHECKED]
        before, again = self.ask(few), self.ask(few)
        if not bool(((before - again).abs() <= _SAME).all()):
            raise NotApplicable(
                "the model answers the same rows differently when it is asked again, and a search "
                "compares repeated answers: turn dropout off (model.eval()), or add noise with a "
                "defense of the shield"
            )


def answered(ask: Callable[[Tensor], Tensor], inputs: Tensor, width: int) -> Tensor:
    """Asks about candidates, and about those beside one that is refused by themselves.

    width: numbers that are read of an answer. Shapes: -> (rows, width), NaN where refused.
    """
    try:
        return ask(inputs)
    except AnswerError:  # such as about a text of padding alone
        if len(inputs) == 1:
            return torch.full((1, width), torch.nan)
        half = len(inputs) // 2
        parts = (inputs[:half], inputs[half:])
        return torch.cat([answered(ask, part, width) for part in parts])


def missed(answers: Tensor, wanted: Tensor) -> Tensor:
    """Returns the mean square by which answers are off; infinite for those that there are not.

    Shapes: answers (rows * k, numbers), wanted (rows, numbers), each row k times in a row ->
    (rows * k,).
    """
    repeated = wanted.repeat_interleave(len(answers) // len(wanted), 0)
    return (answers - repeated).square().mean(1).nan_to_num(torch.inf)
