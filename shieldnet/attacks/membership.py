"""Was this record in the training data? Attacks that need no shadow models."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shieldnet.attacks.base import Answers, Attack, Game
from shieldnet.data import Examples
from shieldnet.errors import DataError
from shieldnet.finding import Finding, Outcome, Threat
from shieldnet.statistics import CONFIDENCE, auc, rows_needed, tpr_at_fpr

MIN_ROWS = 20
"""Fewer members or nonmembers than this are refused."""

_SURE = 3.0  # log odds of p = .95, which one decimal rounds to 1


@dataclass(frozen=True)
class Membership(Attack):
    """Scores every record by the answer about it and its true label; members score higher.

    loss: log p_y - log of the sum of the others (Yeom 2018; unclipped as in Carlini 2022).
    entropy: minus the answer's entropy (Salem 2019). modified entropy: entropy that knows the
    label (Song and Mittal 2021). correctness gap: whether the label is right (Yeom 2018).
    capped loss: loss that calls all sure answers equal: the surest are not the members.
    All are reported, and the worst as ``membership.auc`` and ``membership.tpr_at_fpr_...``:
    its intervals are widened to hold for all at once (Bonferroni), because it was chosen.

    queries: answers about each record, averaged; more than one is reported as
    ``membership.averaged.N``.
    NOT promised: that nobody does better. Shadow models do (LiRA, RMIA); these are lower bounds.
    """

    fprs: tuple[float, ...] = (1e-2, 1e-3)
    queries: int = 1

    def __call__(self, game: Game) -> Outcome:
        members = _scores(game, game.members, self.queries)
        nonmembers = _scores(game, game.nonmembers, self.queries)
        confidence = 1 - (1 - CONFIDENCE) / len(members)
        samples = len(game.members) + len(game.nonmembers)
        ranked = {
            name: Finding.of(
                f"membership.{name}.auc",
                auc(members[name], nonmembers[name], confidence),
                samples=samples,
                baseline=0.5,
                threat=Threat(),
                source=name,
            )
            for name in members
        }
        worst = max(ranked.values(), key=lambda finding: finding.value)
        if self.queries > 1:
            name = f"membership.averaged.{self.queries}"
            return Outcome(findings=(replace(worst, name=name, threat=Threat(self.queries)),))
        findings = [replace(worst, name="membership.auc"), *ranked.values()]
        untested = []
        for fpr in self.fprs:
            name = f"membership.tpr_at_fpr_{fpr:.0e}".replace("e-0", "e-")
            rates = {
                source: tpr_at_fpr(members[source], nonmembers[source], fpr, confidence)
                for source in members
            }
            told = {source: rate for source, rate in rates.items() if rate is not None}
            if not told:
                untested.append(
                    f"{name}: it takes {rows_needed(fpr)} nonmembers, "
                    f"there are {len(game.nonmembers)}"
                )
                continue
            source, rate = max(told.items(), key=lambda item: item[1].value)
            findings.append(
                Finding.of(
                    name, rate, samples=samples, baseline=fpr, threat=Threat(), source=source
                )
            )
        return Outcome(findings=tuple(findings), untested=tuple(untested))


def log_probabilities(answers: Answers) -> Tensor:
    """Returns log p without clipping, from the logits where they were released.

    Shapes: -> (rows, classes) float64; a zero reads as log(1e-300).
    """
    if answers.logits is not None:
        return answers.logits.double().log_softmax(-1)
    return answers.distribution.double().clamp_min(1e-300).log()


def membership_scores(log_p: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Scores each row; a higher score says member. Shapes: (n, K), (n,) -> each (n,)."""
    own = labels.unsqueeze(-1)
    true = log_p.gather(-1, own).squeeze(-1)
    others = log_p.scatter(-1, own, -torch.inf).logsumexp(-1)
    p = log_p.exp()
    # log(1 - p) of every class but the true one, whose p stays below 1 where others have mass.
    log_rest = torch.log1p(-p.clamp_max(1 - 1e-16)).scatter(-1, own, 0.0)
    return {
        "loss": true - others,
        "capped loss": (true - others).clamp_max(_SURE),
        "entropy": (p * log_p).sum(-1),
        "modified entropy": others.exp() * true + (p * log_rest).sum(-1),
        "correctness gap": (log_p.argmax(-1) == labels).double(),
    }


def _scores(game: Game, examples: Examples, queries: int) -> dict[str, Tensor]:
    if len(examples) < MIN_ROWS:
        raise DataError(
            f"Membership expects at least {MIN_ROWS} {examples.name}, got {len(examples)}."
        )
    labels = examples.require_labels(game.classes)
    return membership_scores(log_probabilities(game.ask(examples, queries)), labels)
