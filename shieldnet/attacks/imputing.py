"""Guesses of a column from the others, and what the shield's answers add to them."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from shieldnet.attacks.adversary.features import standardize
from shieldnet.attacks.adversary.selection import MIN_ROWS
from shieldnet.attacks.base import Game, ReadsFirst
from shieldnet.attacks.guesses import Guesses, Resampled, learned
from shieldnet.attacks.secrets import MAX_ROWS, Secret
from shieldnet.core.statistics import CONFIDENCE, Interval
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NO_USE, UNREAD, Finding, NotApplicable, Threat

_MIN_UNIT = 1e-9  # what varies less is the arithmetic, not evidence


def combined(
    game: Game, secret: Secret, sides: list[Tensor], evidence: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Imputes from the sides, then weighs the evidence in; both are learned on the first set.

    Shapes: a list holds one part for each set; sides (rows, columns), evidence (rows, values,
    features) -> (rows, values) log p of the imputation and of both together.
    """
    truth = secret.truth(game.owned().inputs[:MAX_ROWS])
    sizes = [len(side) for side in sides]
    padded = [pad(side, (1, 0)) for side in sides]
    table = torch.cat([standardize(padded[0], side)[1] for side in padded]).double()
    table[:, 0] = 1  # the constant
    often = (truth.bincount(minlength=secret.count).double() + 0.5).log()
    imputed = learned(
        lambda weights, rows: often + table[rows] @ weights.reshape(-1, secret.count),
        table.shape[1] * secret.count,
        truth,
        len(table),
        seed=game.seed,
    )
    if is_unread(game, secret):  # every value gets the same answer: there is no evidence
        return list(imputed.split(sizes)), list(imputed.split(sizes))
    told = torch.cat([values - values.mean(1, keepdim=True) for values in evidence])
    unit = told[: len(truth)].square().mean((0, 1)).sqrt()
    told = (told / unit.where(unit > _MIN_UNIT, 1.0)).clamp(-10, 10)
    each = torch.eye(secret.count, dtype=told.dtype).expand(len(told), -1, -1)
    told = torch.cat([told, imputed.unsqueeze(2), each], 2)
    both = learned(
        lambda weights, rows: imputed[rows] + told[rows] @ weights,
        told.shape[2],
        truth,
        len(told),
        seed=game.seed + 1,
        doubt=1.0,  # evidence from nothing but noise would make the imputation worse
    )
    return list(imputed.split(sizes)), list(both.split(sizes))


def is_unread(game: Game, secret: Secret) -> bool:
    """Returns whether the model does not read the column."""
    model = game.shield.model
    return isinstance(model, ReadsFirst) and min(secret.places) >= model.width


def guesses_of(secret: Secret, examples: Examples, imputed: Tensor, attacked: Tensor) -> Guesses:
    """Keeps the records whose value the auxiliary data have too.

    Errors: NotApplicable where these are too few.
    """
    truth = secret.truth(examples.inputs[:MAX_ROWS])
    seen = truth >= 0
    guesses = Guesses(truth[seen], imputed[seen], attacked[seen])
    counts = guesses.truth.bincount(minlength=secret.count)
    if len(guesses.truth) < MIN_ROWS or (secret.count == 2 and int(counts.min()) < 2):
        raise NotApplicable(f"too few {examples.name} have values that can be told apart")
    return guesses


def findings_of(
    game: Game,
    name: str,
    guesses: Guesses,
    threat: Threat,
    source: str,
    confidence: float = CONFIDENCE,
    *,
    unread: bool = False,
) -> tuple[Finding, Finding]:
    """Reports what is guessed of a column, and what the answers add to the imputation."""
    count = guesses.imputed.shape[1]
    unit = "AUC" if count == 2 else f"accuracy over {count} values"
    baseline = guesses.measured(guesses.imputed).value
    less = f"{unit}, less {baseline:.3f} without the model"
    if unread:
        less = f"{less}; {UNREAD}"
    elif torch.allclose(guesses.attacked, guesses.imputed):
        less = f"{less}; {NO_USE}"
    return (
        Finding.of(
            name,
            guesses.measured(guesses.attacked, confidence),
            samples=len(guesses.truth),
            baseline=baseline,
            threat=threat,
            source=source,
            note=f"{unit}; the baseline guesses from the other columns without the model",
        ),
        Finding.of(
            f"{name}.gain",
            spread(*guesses.gains(game.seed), confidence),
            samples=len(guesses.truth),
            baseline=0.0,
            threat=threat,
            source=source,
            note=less,
        ),
    )


def spread(value: float, resampled: Resampled, confidence: float) -> Interval:
    """Takes the interval of a bootstrap."""
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, min(value, float(low)), max(value, float(high)))
