"""A defense as users write one."""

from dataclasses import dataclass

from torch import Tensor

import shieldnet as sn


@dataclass(frozen=True)
class Halve(sn.Defense):
    """Multiplies scores."""

    factor: float
    accepts = ("logits",)

    def __call__(self, answers: Tensor) -> Tensor:
        return answers * self.factor
