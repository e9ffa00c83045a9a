"""Signs of numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.defenses.base import UNBOUNDED, Defense
from shieldnet.privacy.cost import PrivacyCost, Reach


@dataclass(frozen=True)
class Sign(Defense):
    """Releases the sign of each number of an embedding, +1 or -1; zero counts as +1.

    Similarity search still works, as signs keep the angles between vectors approximately.
    Source: Charikar 2002.
    """

    accepts = ("embeddings",)
    keeps_argmax = False

    def __call__(self, answers: Tensor) -> Tensor:
        return torch.where(answers < 0, -1.0, 1.0).to(answers.dtype)

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        return PrivacyCost(bits=float(classes))

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=classes**0.5, box=(-1.0, 1.0))
