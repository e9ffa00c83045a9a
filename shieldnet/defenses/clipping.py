"""Limits on the norm or the range of a row, which noise and grids need for a finite cost."""

import math
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from shieldnet.core.checks import finite, positive
from shieldnet.core.errors import ConfigError
from shieldnet.defenses.base import UNBOUNDED, Defense
from shieldnet.privacy.cost import Reach

_MARGIN = 1 - 2.0**-20  # wider than float32's rounding of the scaled row
_MIN_BOUND = 1e-30  # below it a row would end among float32's smallest numbers
_LATE = "a clip after it bounds nothing"


@dataclass(frozen=True)
class ClipNorm(Defense):
    """Scales each row so that its L2 norm is at most ``bound``.

    bound: the largest norm, in the unit of the answers; at least 1e-30, no default.
    The Shield centers logits first: softmax ignores a shift, and a centered row is clipped less.
    Scaling keeps the order of the numbers, and makes no ties.
    Guarantee: the exact norm of the float row is at most bound (it is scaled to 1e-6 below it).
    Errors: ConfigError for another bound, and after noise or rounding, which it would not limit.
    Source: Abadi et al. 2016, Algorithm 1 (arXiv:1607.00133).
    """

    bound: float
    accepts = ("logits", "values", "embeddings")
    centered = True
    keeps_nan = True
    not_after = MappingProxyType(
        dict.fromkeys(("GaussianNoise", "LaplaceNoise", "KeyedNoise", "RoundTo"), _LATE)
    )

    @classmethod
    def examples(cls) -> tuple[Defense, ...]:
        return (cls(3.0),)

    def __post_init__(self) -> None:
        if positive("bound", self.bound) < _MIN_BOUND:
            raise ConfigError(f"Expected bound >= {_MIN_BOUND:g}, got bound={self.bound!r}.")

    def __call__(self, answers: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(answers, dim=-1, keepdim=True, dtype=torch.float64)
        norm = norm.clamp_min(torch.finfo(torch.float64).tiny)
        factor = (self.bound * _MARGIN / norm).clamp_max_(1.0)
        clipped: Tensor = answers * factor  # in float64: the factor may be tiny
        return clipped.to(answers.dtype)

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=self.bound)


@dataclass(frozen=True)
class ClipRange(Defense):
    """Clips every number to the range from ``low`` to ``high``.

    low, high: the range, in the unit of the answers, low < high; no default. Choose it from public
        knowledge: a range computed from private data reveals them.
    Errors: ConfigError for another range, and after noise or rounding, which it would not limit.
    """

    low: float
    high: float
    accepts = ("values", "embeddings")
    keeps_argmax = False
    not_after = MappingProxyType(
        dict.fromkeys(("GaussianNoise", "LaplaceNoise", "KeyedNoise", "RoundTo"), _LATE)
    )

    @classmethod
    def examples(cls) -> tuple[Defense, ...]:
        return (cls(-1.0, 1.0),)

    def __post_init__(self) -> None:
        if not finite("low", self.low) < finite("high", self.high):
            raise ConfigError(f"Expected low < high, got low={self.low!r}, high={self.high!r}.")

    def __call__(self, answers: Tensor) -> Tensor:
        return answers.clamp(self.low, self.high)

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        # The ends as float32 rounds them, if that is further out.
        low, high = torch.tensor([self.low, self.high], dtype=torch.float32).tolist()
        box = min(self.low, low), max(self.high, high)
        about_zero = box[0] <= 0 <= box[1]  # else the ball's center has moved
        return Reach(radius=upstream.radius if about_zero else math.inf, box=box)
