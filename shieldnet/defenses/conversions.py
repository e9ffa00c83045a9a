"""One distribution, written as probabilities, as logits, or at another temperature."""

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
    """Turns logits into probabilities; a conversion that the Shield inserts."""

    accepts = ("logits",)
    gives = "probabilities"
    conversion = True

    def __call__(self, answers: Tensor) -> Tensor:
        return answers.softmax(-1)

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=math.sqrt(1 - 1 / classes))  # the simplex, about its center


@dataclass(frozen=True)
class Log(Defense):
    """Turns probabilities into finite logits whose softmax is that distribution.

    A zero becomes ``ZERO_LOGIT``, which every float type exponentiates back to zero.
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
    """Takes each row's mean off: softmax ignores it, and a clip then has less to clip."""

    accepts = ("logits",)
    may_overflow = True
    conversion = True
    keeps_nan = True

    def __call__(self, answers: Tensor) -> Tensor:
        return answers - answers.mean(-1, keepdim=True)


@dataclass(frozen=True)
class Temperature(Defense):
    """Divides logits by ``temperature``: calibration, not a defense, so its cost is unchanged.

    It is (nearly) a bijection: measured, it removes next to nothing of what an answer leaks.
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
