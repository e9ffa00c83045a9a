"""Asking the same thing again: fresh noise is averaged away."""

from dataclasses import dataclass

from shieldnet.attacks.base import MANY, Attack, Game
from shieldnet.attacks.inversion import Inversion
from shieldnet.attacks.membership import Membership
from shieldnet.finding import NotApplicable, Outcome


@dataclass(frozen=True)
class Averaging(Attack):
    """Inverts, and tells members by, the mean of many answers; a ledger stops it, not noise."""

    queries: tuple[int, ...] = (16, MANY)

    def __call__(self, game: Game) -> Outcome:
        if game.shield.deterministic:
            raise NotApplicable("the shield gives the same answer every time")
        attacks = [Inversion(queries=count) for count in self.queries]
        outcomes = [attack(game) for attack in (*attacks, Membership(queries=self.queries[-1]))]
        return Outcome(findings=tuple(one for outcome in outcomes for one in outcome.findings))
