"""A row inside a ball, so that noise of a fixed scale can bound what it says."""

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from shieldnet._validate import positive
from shieldnet.defenses.base import UNBOUNDED, Defense
from shieldnet.price import Reach

_MARGIN = 1 - 2.0**-20  # wider than float32's rounding of the scaled row


@dataclass(frozen=True)
class ClipNorm(Defense):
    """Centers each row of logits and scales it so that its L2 norm is at most ``bound``.

    Softmax ignores a shift, so centering costs nothing and leaves less to clip. Scaling, unlike a
    box, makes no ties.

    Guarantee: the exact norm of the float row is at most bound (it ends 1e-6 inside).
    Source: Abadi et al. 2016, Algorithm 1 (arXiv:1607.00133).
    """

    bound: float
    accepts = ("logits",)
    gives = "logits"
    not_after = MappingProxyType({"GaussianNoise": "a clip after the noise bounds nothing"})

    def __post_init__(self) -> None:
        positive("bound", self.bound)

    def __call__(self, answers: Tensor) -> Tensor:
        wide = answers.to(torch.float64)
        centered = wide - wide.mean(-1, keepdim=True)
        norm = centered.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        factor = (self.bound * _MARGIN / norm).clamp_max(1.0)
        clipped: Tensor = centered * factor
        return clipped.to(answers.dtype)

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=self.bound)
