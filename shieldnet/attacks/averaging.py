"""Asking the same thing again: fresh noise is averaged away."""

from dataclasses import dataclass

from shieldnet.attacks.base import MAX_QUERIES, Attack, Game
from shieldnet.attacks.inversion.decoding import Inversion
from shieldnet.attacks.membership.attack import Membership
from shieldnet.findings.finding import NotApplicable, Outcome

_MAX_OF_COPIES = 16  # answers about each of many copies of a record


@dataclass(frozen=True)
class Averaging(Attack):
    """Inverts, and tells members by, the mean of many answers; a ledger stops it, not noise."""

    metrics = (*Inversion.metrics, *Membership.metrics)
    needs_shadows = True
    queries: tuple[int, ...] = (16, MAX_QUERIES)

    def __call__(self, game: Game) -> Outcome:
        if game.shield.deterministic:
            raise NotApplicable("the shield gives the same answer every time")
        is_labeled = game.members.labels is not None and game.nonmembers.labels is not None
        attacks: list[Attack] = []
        if is_labeled and (game.gives_values or not game.is_vector):
            attacks.append(Membership(queries=self.queries[-1]))
        if game.shield.chain.layout.kind == "embeddings":  # whose copies are averaged as well
            attacks.append(Membership(queries=min(_MAX_OF_COPIES, self.queries[-1])))
        untested: tuple[str, ...] = ("averaging: inverting needs auxiliary data",)
        if game.auxiliary is not None:
            attacks += [Inversion(queries=count) for count in self.queries]
            untested = ()
        findings = tuple(finding for attack in attacks for finding in attack(game).findings)
        return Outcome(findings=findings, untested=untested)
