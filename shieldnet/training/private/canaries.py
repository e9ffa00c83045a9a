"""Gradient canaries of a private training, scored by their noisy sums."""

import torch
from torch import Tensor

from shieldnet.training.private.gradient_parts import Gradient, Whole, clipped_sum

CANARY_SCALE = 1e3
"""Length of a canary's gradient before clipping, in clip norms."""
_BLOCK = 128  # canaries whose gradients are in memory at once


def canary_sum(drawn: Tensor, clip: float) -> Tensor:
    """Sums the clipped gradients of the drawn canaries, each along its own artificial weight.

    Shapes: drawn (canaries,) bool -> (canaries,) float64, at most ``clip`` each.
    """
    total = torch.zeros(len(drawn), dtype=torch.float64)
    for some, sums in zip(drawn.split(_BLOCK), total.split(_BLOCK), strict=True):
        canaries = some.nonzero()[:, 0]  # their gradients are 0 along the weights of other blocks
        gradients = torch.zeros(len(canaries), len(some))
        gradients[torch.arange(len(canaries)), canaries] = CANARY_SCALE * clip
        clipped_sum([Gradient((Whole(gradients),))], clip, [sums])
    return total


def log_likelihood_ratio(sums: Tensor, noise: float, rate: float) -> Tensor:
    """Returns the log likelihood ratio of each noisy sum: canary in over canary out.

    This is the optimal score. The sum of a canary that is in is 1 with probability ``rate``, else
    0; that of another is 0; ``noise`` is the standard deviation of the added noise.
    Shapes: sums (canaries,) -> the same.
    """
    shift = (sums.double() - 0.5) / noise**2
    if rate == 1:
        return shift
    odds = torch.tensor(rate, dtype=torch.float64)
    return torch.logaddexp((1 - odds).log(), odds.log() + shift)
