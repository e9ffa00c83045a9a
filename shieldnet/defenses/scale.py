"""One distribution, written as probabilities, as logits, or at another temperature."""

import math
from dataclasses import dataclass

from torch import Tensor

from shieldnet._validate import positive
from shieldnet.answers import ZERO_LOGIT
from shieldnet.defenses.base import UNBOUNDED, Defense
from shieldnet.price import Reach


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
        return answers.log().clamp_min(ZERO_LOGIT)


@dataclass(frozen=True)
class Temperature(Defense):
    """Divides logits by ``temperature``: calibration, not a defense, so its price is unchanged.

    It is (nearly) a bijection: measured, it removes next to nothing of what an answer leaks.
    """

    temperature: float
    accepts = ("logits",)
    gives = "logits"

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)

    def __call__(self, answers: Tensor) -> Tensor:
        return answers / self.temperature

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=upstream.radius / self.temperature)
