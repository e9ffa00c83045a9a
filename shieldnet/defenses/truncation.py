"""Only the top classes keep their scores."""

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from shieldnet._validate import whole
from shieldnet.defenses.base import UNBOUNDED, Defense, keep_top
from shieldnet.errors import AnswerError, ConfigError, ShieldnetError
from shieldnet.price import Reach

_BELOW = 1 - 2.0**-20


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
        if not isinstance(self.or_all, bool):
            raise ConfigError(f"Expected or_all to be true or false, got {self.or_all!r}.")

    def __call__(self, answers: Tensor) -> Tensor:
        classes = answers.shape[-1]
        self._check(classes, AnswerError)
        if self.k >= classes:
            return answers
        kept = keep_top(answers, self.k)
        return spread(torch.where(kept, answers, 0.0), kept)

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        self._check(classes, ConfigError)
        return Reach(radius=1.0, named=min(self.k, classes))

    def _check(self, classes: int, error: type[ShieldnetError]) -> None:
        if self.k > classes and not self.or_all:
            raise error(
                f"{self} expects at least {self.k} classes, the model has {classes}. "
                f"Use k <= {classes}, or or_all=True to keep all of them."
            )

    def adversary_view(self, answers: Tensor) -> dict[str, Tensor]:
        k = min(self.k, answers.shape[-1])
        return {f"top {k}": keep_top(answers, k).to(answers.dtype)}


def spread(kept_scores: Tensor, kept: Tensor) -> Tensor:
    """Shares what the kept scores leave of 1 evenly, always below the least kept score.

    Nearly flat rows are capped a millionth below it, lest rounding make an earlier class win.

    Shapes: kept_scores (rows, classes), kept (rows, classes) bool -> (rows, classes).
    """
    others = (~kept).sum(-1, keepdim=True)
    even = (1 - kept_scores.sum(-1, keepdim=True)).clamp_min(0) / others
    least = torch.where(kept, kept_scores, 1.0).amin(-1, keepdim=True)
    return torch.where(kept, kept_scores, torch.minimum(even, least * _BELOW))
