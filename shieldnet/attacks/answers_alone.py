"""What a vector alone tells of a column, to somebody who knows nothing else of the record."""

import torch
from torch import Tensor

from shieldnet.attacks.adversary.features import standardize
from shieldnet.attacks.base import Game
from shieldnet.attacks.guesses import learned
from shieldnet.attacks.secrets import MAX_ROWS, Secret
from shieldnet.core.statistics import random_sums

_MAX_NUMBERS = 128  # of a vector; more of them are summed at random


def told_alone(game: Game, secret: Secret) -> tuple[Tensor, Tensor]:
    """Returns log p of each value for nonmembers: from how often it occurs, and from the answer.

    A logistic regression is learned on the answers about the adversary's own rows; it stays at how
    often each value occurs unless it is better by a standard error on rows held back.
    Shapes: -> twice (rows, values).
    """
    owned = game.owned()
    truth = secret.truth(owned.inputs[:MAX_ROWS])
    answers = [
        random_sums(game.ask(part).first(MAX_ROWS).distribution.float(), _MAX_NUMBERS)
        for part in (owned, game.nonmembers)
    ]
    table = torch.cat([standardize(answers[0], part)[1] for part in answers]).double()
    table = torch.cat([torch.ones(len(table), 1, dtype=table.dtype), table], 1)
    often = (truth.bincount(minlength=secret.count).double() + 0.5).log().log_softmax(0)
    told = learned(
        lambda weights, rows: often + table[rows] @ weights.reshape(-1, secret.count),
        table.shape[1] * secret.count,
        truth,
        len(table),
        seed=game.seed,
        doubt=1.0,
    )
    asked = told[len(truth) :]
    return often.expand_as(asked), asked
