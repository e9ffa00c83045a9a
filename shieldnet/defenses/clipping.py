"""A row inside a ball or a box, so that noise or a grid can bound what it says."""

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from shieldnet._validate import finite, positive
from shieldnet.defenses.base import UNBOUNDED, Defense
from shieldnet.errors import ConfigError
from shieldnet.price import Reach

_MARGIN = 1 - 2.0**-20  # wider than float32's rounding of the scaled row
_LATE = "a clip after it bounds nothing"


@dataclass(frozen=True)
class ClipNorm(Defense):
    """Scales each row so that its L2 norm is at most ``bound``.

    Logits are centered first, as softmax ignores a shift and less is left to clip. Scaling,
    unlike a box, makes no ties.

    Guarantee: the exact norm of the float row is at most bound (it ends 1e-6 inside).
    Source: Abadi et al. 2016, Algorithm 1 (arXiv:1607.00133).
    """

    bound: float
    accepts = ("logits", "values", "embeddings")
    centered = True
    not_after = MappingProxyType(
        dict.fromkeys(("GaussianNoise", "LaplaceNoise", "KeyedNoise", "RoundTo"), _LATE)
    )

    def __post_init__(self) -> None:
        positive("bound", self.bound)

    def __call__(self, answers: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(answers, dim=-1, keepdim=True, dtype=torch.float64)
        norm = norm.clamp_min(torch.finfo(torch.float64).tiny)
        factor = (self.bound * _MARGIN / norm).clamp_max_(1.0)
        clipped: Tensor = answers * factor.to(answers.dtype)
        return clipped

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=self.bound)


@dataclass(frozen=True)
class ClipRange(Defense):
    """Moves every number into [low, high]: the range that is agreed upon, never the data's own.

    A range taken from private data gives them away; choose it from what everybody knows.
    """

    low: float
    high: float
    accepts = ("values", "embeddings")
    keeps_argmax = False
    not_after = MappingProxyType(
        dict.fromkeys(("GaussianNoise", "LaplaceNoise", "KeyedNoise", "RoundTo"), _LATE)
    )

    def __post_init__(self) -> None:
        if not finite("low", self.low) < finite("high", self.high):
            raise ConfigError(f"Expected low < high, got low={self.low!r}, high={self.high!r}.")

    def __call__(self, answers: Tensor) -> Tensor:
        return answers.clamp(self.low, self.high)

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=upstream.radius, box=(self.low, self.high))
