"""Rounding of probabilities and of numbers."""

import math
from dataclasses import dataclass

from torch import Tensor

from shieldnet.core.checks import positive, whole
from shieldnet.defenses.apportionment import (
    apportioned,
    in_ticks,
    rest_of,
    total_weight,
)
from shieldnet.defenses.base import UNBOUNDED, Defense
from shieldnet.defenses.largest import top
from shieldnet.defenses.named import Named, dense, joined, weights_of
from shieldnet.privacy.cost import PrivacyCost, Reach, grid_bits


@dataclass(frozen=True)
class Round(Defense):
    """Rounds each row to a distribution whose probabilities are multiples of 10^-``digits``.

    digits: decimals, 0 to 6, default 2. A row is shared out in ticks of 10^-digits, by largest
        remainders, and the number of possible rows is the cost.
    After ``TopK`` the other classes are rounded as one and share its ticks evenly: in a flat row
    each of them may then have more, by less than a tick, than a class that was kept. Rounding
    logits instead would remove almost nothing.

    Guarantee: every entry is a whole number of ticks and each row's ticks sum to 10^digits.
    Guarantee: the winner stays the winner, with strictly the most ticks.
    Guarantee: rounding a rounded row changes nothing.

    | row | ticks at digits=1 |
    |---|---|
    | 0.46 0.44 0.10 | 5 4 1: the largest remainders get the ticks that are left |
    | 0.25 0.25 0.25 0.25 | 4 2 2 2: the first of equals wins, strictly |
    | 0.496 0.504 | 4 6: a tie would hide the winner, which gets one tick of the other |
    """

    digits: int = 2
    accepts = ("probabilities",)
    gives = "probabilities"

    @classmethod
    def examples(cls) -> tuple[Defense, ...]:
        return (cls(0), cls(1), cls(6))

    def __post_init__(self) -> None:
        whole("digits", self.digits, low=0, high=6)

    @property
    def ticks(self) -> int:
        """Returns the number of ticks of a row: 10^digits."""
        return int(10**self.digits)

    def __call__(self, answers: Tensor) -> Tensor:
        return dense(self.compact(answers))

    def compact(self, answers: Tensor | Named) -> Tensor | Named:
        if isinstance(answers, Named):
            return self._of_named(answers)
        classes = answers.shape[-1]
        # No class beyond the first ``ticks`` can get one.
        scores, places = top(answers, min(self.ticks, classes))
        total = total_weight(answers) if classes > self.ticks else None
        shares = apportioned(weights_of(scores), self.ticks, total=total)
        worth = in_ticks(shares, self.ticks, 1, answers.dtype)
        return Named(worth, places, 0.0, classes, answers.dtype)

    def _of_named(self, answers: Named) -> Named:
        weights = weights_of(answers.columns())
        others = answers.classes - weights.shape[-1]
        if others == 0:
            worth = in_ticks(apportioned(weights, self.ticks), self.ticks, 1, answers.dtype)
            return answers._replace(scores=worth, rest=0.0)
        weights = joined([weights, rest_of(weights, others)])
        shares = apportioned(weights, self.ticks, others)
        return answers._replace(
            scores=in_ticks(shares[..., :-1], self.ticks, 1, answers.dtype),
            rest=in_ticks(shares[..., -1:], self.ticks, others, answers.dtype),
        )

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        return PrivacyCost(bits=grid_bits(classes, self.ticks, upstream.named))

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=1.0, named=upstream.named)

    def adversary_view(self, answers: Tensor) -> dict[str, Tensor]:
        return {"log p above half a tick": answers.clamp_min(0.5 / self.ticks).log()}


@dataclass(frozen=True)
class RoundTo(Defense):
    """Rounds every number to the nearest multiple of ``step``, halves to the even multiple.

    step: in the unit of the answers, above 0; no default.
    Its cost is finite only after a clip, which limits how many multiples there are.
    """

    step: float
    accepts = ("values", "embeddings")
    keeps_argmax = False
    may_overflow = True
    keeps_nan = True

    @classmethod
    def examples(cls) -> tuple[Defense, ...]:
        return (cls(0.5),)

    def __post_init__(self) -> None:
        positive("step", self.step)

    def __call__(self, answers: Tensor) -> Tensor:
        wide = answers.double()
        # Adding 0 turns -0 into 0: else a released zero would tell the sign.
        return wide.div(self.step).round_().mul_(self.step).add_(0.0).to(answers.dtype)

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        low, high = upstream.box
        low, high = max(low, -upstream.radius), min(high, upstream.radius)
        if math.isinf(low) or math.isinf(high):
            return PrivacyCost()
        multiples = math.floor(high / self.step + 0.5) - math.ceil(low / self.step - 0.5) + 1
        return PrivacyCost(bits=classes * math.log2(multiples))

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        low, high = upstream.box
        return Reach(
            radius=upstream.radius + math.sqrt(classes) * self.step / 2,
            box=(low - self.step / 2, high + self.step / 2),
        )
