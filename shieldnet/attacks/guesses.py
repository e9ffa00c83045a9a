"""Guesses of a secret with and without the model, and what the model adds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from shieldnet.attacks.adversary.logistic import fitted_weights
from shieldnet.core.statistics import CONFIDENCE, Interval, auc, proportion

Resampled: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.float64]]"
_FOLDS = 4
_PENALTIES = (1.0, 1e-1, 1e-2, 1e-3)
_RESAMPLES = 2000


@dataclass(frozen=True)
class Guesses:
    """Holds log p of every value, by the imputation and by the attack, for rows with the truth.

    Shapes: truth (rows,), imputed and attacked (rows, values).
    """

    truth: Tensor
    imputed: Tensor
    attacked: Tensor

    def measured(self, log_p: Tensor, confidence: float = CONFIDENCE) -> Interval:
        """Returns the AUC for two values, else the share of values named right."""
        if log_p.shape[1] == 2:
            odds = log_p[:, 1] - log_p[:, 0]
            return auc(odds[self.truth == 1], odds[self.truth == 0], confidence)
        right = int((log_p.argmax(1) == self.truth).sum())
        return proportion(right, len(self.truth), confidence)

    def gains(self, seed: int) -> tuple[float, Resampled]:
        """Returns how far the attack is ahead of the imputation, and the same for resamples.

        Both are scored on the same resampled rows; for an AUC each value's rows are resampled.
        Source: percentile bootstrap, Efron and Tibshirani 1993, chapter 13.
        """
        draw = np.random.default_rng(seed)

        def shares(rows: int) -> Tensor:
            counts = draw.multinomial(rows, [1 / rows] * rows, size=_RESAMPLES)
            return torch.from_numpy(counts / rows)

        if self.imputed.shape[1] == 2:
            ahead = self._ordered(self.attacked) - self._ordered(self.imputed)
            again = ((shares(len(ahead)) @ ahead) * shares(ahead.shape[1])).sum(1)
        else:
            named = [log_p.argmax(1) == self.truth for log_p in (self.attacked, self.imputed)]
            ahead = named[0].double() - named[1].double()
            again = shares(len(ahead)) @ ahead
        return float(ahead.mean()), again.numpy()

    def _ordered(self, log_p: Tensor) -> Tensor:
        """Says which pairs are in order, 1/2 for ties. Shapes: -> (ones, zeros) float64."""
        odds = log_p[:, 1] - log_p[:, 0]
        apart = odds[self.truth == 1].unsqueeze(1) - odds[self.truth == 0]
        return (apart.sign().double() + 1) / 2


def learned(
    scores: Callable[[Tensor, Tensor], Tensor],
    weights: int,
    truth: Tensor,
    rows: int,
    *,
    seed: int,
    doubt: float = 0.0,
) -> Tensor:
    """Learns weights on the first rows, those with a truth, and returns log p for all rows.

    The first rows get what the other folds learned, the rest what all of the first taught. Weights
    minimize log loss plus a penalty on their squares, chosen by the folds. They stay 0 unless that
    is better in the folds by ``doubt`` standard errors.

    scores: of (weights, places of rows), (rows, values). Shapes: truth (n,) -> (rows, values).
    """
    fold = torch.randperm(len(truth), generator=torch.Generator().manual_seed(seed)) % _FOLDS
    everyone, known = torch.arange(rows), torch.arange(len(truth))
    nothing = torch.zeros(weights, dtype=torch.float64)

    def held_out(penalty: float) -> Tensor:
        answers = scores(nothing, known)
        for held in range(_FOLDS):
            fit = known[fold != held]
            fitted = _fitted(scores, weights, fit, truth[fit], penalty)
            answers[fold == held] = scores(fitted, known[fold == held])
        return answers

    trials = {penalty: held_out(penalty) for penalty in _PENALTIES}
    best = min(trials, key=lambda penalty: float(cross_entropy(trials[penalty], truth)))
    before, after = (
        cross_entropy(log_p, truth, reduction="none")
        for log_p in (scores(nothing, known), trials[best])
    )
    saved = before - after
    if saved.mean() <= doubt * saved.std() / len(saved) ** 0.5:
        return scores(nothing, everyone).log_softmax(1)
    answers = scores(_fitted(scores, weights, known, truth, best), everyone)
    answers[: len(truth)] = trials[best]
    return answers.log_softmax(1)


def _fitted(
    scores: Callable[[Tensor, Tensor], Tensor],
    weights: int,
    rows: Tensor,
    truth: Tensor,
    penalty: float,
) -> Tensor:
    def loss(fitted: Tensor) -> Tensor:
        return cross_entropy(scores(fitted, rows), truth) + penalty * fitted.square().sum() / 2

    return fitted_weights(weights, loss, max_steps=60)
