"""Canaries of a private training: gradients of their own, whose noisy sums tell who is in."""

import torch
from torch import Tensor

from shieldnet.training.private.gradient_parts import Gradient, Whole, clipped_sum

CANARY_SCALE = 1e3
"""How many clip norms long a canary's gradient is before it is clipped."""


def canary_sum(drawn: Tensor, clip: float) -> Tensor:
    """Sums the gradients of the canaries that are drawn: huge, along one weight for each.

    Shapes: drawn (canaries,) bool -> (canaries,) float64, of at most ``clip`` each.
    """
    count = len(drawn)
    canaries = drawn.nonzero()[:, 0]
    gradients = torch.zeros(len(canaries), count)
    gradients[torch.arange(len(canaries)), canaries] = CANARY_SCALE * clip
    total = torch.zeros(count, dtype=torch.float64)
    clipped_sum([Gradient((Whole(gradients),))], clip, [total])
    return total


def log_likelihood_ratio(sums: Tensor, noise: float, rate: float) -> Tensor:
    """Returns the log of how much likelier a canary's noisy sum is if the canary is in.

    The best score there is: of a canary that is in, the sum is 1 with chance ``rate``, else 0; of
    another it is 0; noise of this deviation is added. Shapes: sums (canaries,) -> the same.
    """
    shift = (sums.double() - 0.5) / noise**2
    if rate == 1:
        return shift
    odds = torch.tensor(rate, dtype=torch.float64)
    return torch.logaddexp((1 - odds).log(), odds.log() + shift)
