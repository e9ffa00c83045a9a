"""Asking the same thing again: fresh noise is averaged away."""

from dataclasses import dataclass

from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.inversion import Inversion
from shieldnet.finding import NotApplicable, Outcome


@dataclass(frozen=True)
class Averaging(Attack):
    """Inverts the mean of many answers about each row; the ledger is what stops it, not noise."""

    queries: tuple[int, ...] = (16, 256)

    def __call__(self, game: Game) -> Outcome:
        if game.shield.deterministic:
            raise NotApplicable("the shield gives the same answer every time")
        outcomes = [Inversion(queries=count)(game) for count in self.queries]
        return Outcome(findings=tuple(one for outcome in outcomes for one in outcome.findings))
