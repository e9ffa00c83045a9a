"""Is the trained model as private as it claims? Canaries drawn at random, and guesses."""

from dataclasses import dataclass

import torch

from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.membership.residuals import residual_scores
from shieldnet.attacks.membership.scores import all_scores
from shieldnet.findings.finding import NotApplicable, Outcome, Threat
from shieldnet.privacy.one_run_bounds import RECORDS_EPSILON, best_guesses, epsilon_finding, guessed


@dataclass(frozen=True)
class OneRun(Attack):
    """Guesses which canaries trained the model, and bounds its epsilon from below by the guesses.

    How a canary is scored, and how many are guessed, is settled before the scores are seen: by
    offline LiRA where there are shadows, else by the loss; as many as the claimed mu would show
    most with. Records behind a shield show little: a bound near 0 is what a sound training gives,
    and most unsound ones too. ``DPSGD(canaries=...)`` is the sharper test.
    Errors: NotApplicable without a guarantee of weights or canaries, and for canaries planted
    several times.
    Source: Steinke, Nasr, Jagielski 2023 (arXiv:2305.08846).
    """

    metrics = (RECORDS_EPSILON,)
    needs_shadows = True

    def __call__(self, game: Game) -> Outcome:
        if game.guarantee is None:
            raise NotApplicable(
                "it tests the guarantee of a private training, and none was given (finetuned=)"
            )
        if game.guarantee.scope == "steps":
            raise NotApplicable(
                "the guarantee is of its steps alone, and the start may know the canaries (start=)"
            )
        if game.canaries is None:
            raise NotApplicable(
                "no canary records were planted in the training data (canaries=); canary "
                "gradients are another test, which finetune makes while it trains"
            )
        if game.canaries.copies > 1:
            raise NotApplicable("a guarantee is for one record, not for copies of it")
        game.require_answers_to_labels()
        planted, held_out = game.canaries.planted, game.canaries.held_out
        scores_of = residual_scores if game.gives_values else all_scores
        scored = scores_of(game, planted, held_out, 1)
        attack = "LiRA offline" if "LiRA offline" in scored else "loss"
        chosen = scored[attack]
        scores = torch.cat([chosen.members, chosen.nonmembers])
        is_planted = torch.arange(len(scores)) < len(chosen.members)
        # Ties are broken by place, which must not know the draws.
        order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(game.seed))
        claimed, count = game.guarantee, len(scores)
        guesses = best_guesses(claimed.mu, count, claimed.delta)
        finding = epsilon_finding(
            "one_run.records.epsilon",
            guessed(scores[order], is_planted[order], guesses),
            guesses,
            count,
            claimed.delta,
            claimed=claimed.epsilon,
            threat=Threat(shadows=chosen.shadows),
            scoring=attack,
        )
        return Outcome(findings=(finding,))
