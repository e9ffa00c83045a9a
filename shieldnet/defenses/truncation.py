"""Only the top classes keep their scores."""

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from shieldnet._validate import whole
from shieldnet.defenses.base import UNBOUNDED, Defense, keep_top
from shieldnet.errors import AnswerError
from shieldnet.price import Reach


@dataclass(frozen=True)
class TopK(Defense):
    """Keeps the ``k`` largest probabilities and spreads the rest evenly over the other classes.

    Rows stay distributions, so a caller's loss and argmax go on working. The scores that are kept
    are real numbers: alone it has no finite price. Put ``Round`` after it.

    or_all: a model with fewer than k classes keeps all of them.
    Errors: k above the number of classes raises AnswerError at the first answer, unless or_all.
    """

    k: int
    or_all: bool = False
    accepts = ("probabilities",)
    gives = "probabilities"
    not_after = MappingProxyType(
        {"Round": "rounding first makes ties that backends cut differently"}
    )

    def __post_init__(self) -> None:
        whole("k", self.k, low=1)

    def __call__(self, answers: Tensor) -> Tensor:
        classes = answers.shape[-1]
        if self.k > classes and not self.or_all:
            raise AnswerError(
                f"{self} expects at least {self.k} classes, the model has {classes}. "
                f"Use k <= {classes}, or or_all=True to keep all of them."
            )
        if self.k >= classes:
            return answers
        kept = keep_top(answers, self.k)
        return spread(torch.where(kept, answers, 0.0), kept)

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=1.0, named=min(self.k, classes))

    def adversary_view(self, answers: Tensor) -> dict[str, Tensor]:
        k = min(self.k, answers.shape[-1])
        return {f"top {k}": keep_top(answers, k).to(answers.dtype)}


def spread(kept_scores: Tensor, kept: Tensor) -> Tensor:
    """Shares what the kept scores leave of 1 evenly, never above the least kept score.

    Shapes: kept_scores (rows, classes), kept (rows, classes) bool -> (rows, classes).
    """
    others = (~kept).sum(-1, keepdim=True)
    even = (1 - kept_scores.sum(-1, keepdim=True)).clamp_min(0) / others
    least = torch.where(kept, kept_scores, 1.0).amin(-1, keepdim=True)
    return torch.where(kept, kept_scores, torch.minimum(even, least))
