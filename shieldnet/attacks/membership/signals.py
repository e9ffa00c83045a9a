"""What answers say of a record at first sight; a higher score says member."""

import torch
from torch import Tensor

from shieldnet.attacks.answers import Answers
from shieldnet.attacks.base import Game

_MAX_LOG_ODDS = 3.0  # log odds of p = .95, which one decimal rounds to 1


def log_probabilities(answers: Answers, floor: float = 1e-300) -> Tensor:
    """Returns log p without clipping, from the logits where they were released.

    floor: what a released zero reads as.
    Shapes: -> (rows, classes) float64.
    """
    if answers.logits is not None:
        return answers.logits.double().log_softmax(-1)
    return answers.distribution.double().clamp_min(floor).log()


def membership_scores(log_p: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Scores each row; a higher score says member. Shapes: (n, K), (n,) -> each (n,).

    loss: log p_y - log of the sum of the others (Yeom 2018; unclipped as in Carlini 2022).
    entropy: minus the answer's entropy (Salem 2019). modified entropy: entropy that knows the
    label (Song and Mittal 2021). correctness gap: whether the label is right (Yeom 2018).
    capped loss: loss that calls all sure answers equal: the surest are not the members.
    """
    own = labels.unsqueeze(-1)
    true = log_p.gather(-1, own).squeeze(-1)
    others = log_p.scatter(-1, own, -torch.inf).logsumexp(-1)
    p = log_p.exp()
    # log(1 - p) of every class but the true one, whose p stays below 1 where others have mass.
    log_rest = torch.log1p(-p.clamp_max(1 - 1e-16)).scatter(-1, own, 0.0)
    return {
        "loss": true - others,
        "capped loss": (true - others).clamp_max(_MAX_LOG_ODDS),
        "entropy": (p * log_p).sum(-1),
        "modified entropy": others.exp() * true + (p * log_rest).sum(-1),
        "correctness gap": (log_p.argmax(-1) == labels).double(),
    }


def floor_of(game: Game, queries: int) -> float:
    """Returns half of the least that was released above zero: what a zero may well stand for."""
    smallest = 1.0
    for examples in game.reference:
        released = game.ask(examples, queries).distribution
        smallest = min(smallest, float(released[released > 0].min()))
    return max(smallest / 2, 1e-300)
