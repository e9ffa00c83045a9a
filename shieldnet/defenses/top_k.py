"""Scores of the top classes only."""

from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from shieldnet.core.checks import flag, whole
from shieldnet.core.errors import AnswerError, ConfigError, ShieldnetError
from shieldnet.defenses.base import UNBOUNDED, Defense, Naming
from shieldnet.defenses.largest import keep_top, top
from shieldnet.defenses.named import Named, dense
from shieldnet.privacy.cost import Reach


@dataclass(frozen=True)
class TopK(Naming):
    """Keeps the ``k`` largest probabilities and spreads the rest evenly over the other classes.

    k: number of classes that keep their probability, at least 1; no default. or_all: whether a
        model with fewer than k classes keeps all of them, default False.
    Rows stay distributions. The probabilities that are kept are real numbers, so the cost is
    infinite unless ``Round`` follows.
    Errors: AnswerError at the first answer if k exceeds the number of classes, unless or_all;
        ConfigError after ``Round``.
    """

    k: int
    or_all: bool = False
    not_after = MappingProxyType(
        {"Round": "rounding first makes ties that backends cut differently"}
    )

    @classmethod
    def examples(cls) -> tuple[Defense, ...]:
        return (cls(1), cls(2))

    def __post_init__(self) -> None:
        whole("k", self.k, low=1)
        flag("or_all", self.or_all)

    def __call__(self, answers: Tensor) -> Tensor:
        return dense(self.compact(answers))

    def compact(self, answers: Tensor | Named) -> Tensor | Named:
        rows = dense(answers)
        self._check(rows.shape[-1], AnswerError)
        return rows if self.k >= rows.shape[-1] else self.named(rows)

    def named(self, answers: Tensor) -> Named:
        scores, places = top(answers, self.k)
        return Named(scores, places, None, answers.shape[-1], answers.dtype)

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
