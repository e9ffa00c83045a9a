"""Conversions between logits and probabilities."""

import math
from dataclasses import dataclass

from torch import Tensor

from shieldnet.core.checks import positive
from shieldnet.defenses.base import UNBOUNDED, Defense
from shieldnet.defenses.named import Array, Lookup, Named, as_tensor, at_hand, logs_of
from shieldnet.outputs.layout import ZERO_LOGIT
from shieldnet.privacy.cost import Reach


@dataclass(frozen=True)
class Softmax(Defense):
    """Converts logits to probabilities; the Shield inserts it where needed."""

    accepts = ("logits",)
    gives = "probabilities"
    conversion = True

    def __call__(self, answers: Tensor) -> Tensor:
        return answers.softmax(-1)

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=math.sqrt(1 - 1 / classes))  # the simplex, about its center


@dataclass(frozen=True)
class Log(Defense):
    """Converts probabilities to finite logits whose softmax is the same distribution.

    A zero becomes ``ZERO_LOGIT`` (-1024), whose exponential is 0 in every float type.
    """

    accepts = ("probabilities",)
    gives = "logits"
    conversion = True

    def __call__(self, answers: Tensor) -> Tensor:
        return logs_of(answers)

    def compact(self, answers: Tensor | Named) -> Tensor | Named:
        if isinstance(answers, Named):
            whole = answers.shared()
            return whole._replace(scores=self._of(whole.scores), rest=self._of(whole.rest))
        return self(answers)

    def _of(self, column: Array | Lookup | float) -> Array | Lookup | float:
        if isinstance(column, Lookup):
            return column._replace(which=1)
        if isinstance(column, float):
            return max(math.log(column), ZERO_LOGIT) if column > 0 else ZERO_LOGIT
        return self(column) if isinstance(column, Tensor) else at_hand(self(as_tensor(column)))


@dataclass(frozen=True)
class Center(Defense):
    """Subtracts each row's mean: softmax ignores it, and a centered row is clipped less."""

    accepts = ("logits",)
    may_overflow = True
    conversion = True
    keeps_nan = True

    def __call__(self, answers: Tensor) -> Tensor:
        return answers - answers.mean(-1, keepdim=True)


@dataclass(frozen=True)
class Temperature(Defense):
    """Divides logits by ``temperature``, for calibration; it is no defense.

    temperature: above 0, without a unit; no default. Above 1, probabilities are more even.
    The cost is unchanged: the division is nearly a bijection, and measured leakage hardly changes.
    """

    temperature: float
    accepts = ("logits",)
    may_overflow = True
    keeps_nan = True

    @classmethod
    def examples(cls) -> tuple[Defense, ...]:
        return (cls(0.5),)

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)

    def __call__(self, answers: Tensor) -> Tensor:
        return answers / self.temperature

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=upstream.radius / self.temperature)
