"""Fewer digits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.core.checks import positive, whole
from shieldnet.core.opaque_ops import is_captured
from shieldnet.defenses.base import UNBOUNDED, Defense, Named, dense, top
from shieldnet.privacy.cost import PrivacyCost, Reach, grid_bits


@dataclass(frozen=True)
class Round(Defense):
    """Rounds each row to a distribution on a grid of 10^-``digits``, by largest remainders.

    The work is done in whole ticks, so the answers that can occur are exactly the grid's and
    their number is the cost. What rounding logits instead would remove is almost nothing. After
    a cut such as ``TopK`` the classes that are not named are rounded as one and share its ticks
    evenly: in a flat row a named class may then stand less than a tick below them.

    Guarantee: every entry is a whole number of ticks and each row's ticks sum to 10^digits.
    Guarantee: the winner stays the winner, with strictly the most ticks.
    Guarantee: rounding a rounded row changes nothing.

    | row | ticks at digits=1 |
    |---|---|
    | .46 .44 .10 | 5 4 1: equal floors, the largest remainders are served first |
    | .25 .25 .25 .25 | 4 2 2 2: the first of equals wins, strictly |
    | .496 .504 | 4 6: a tie would hide the winner, so it takes a tick |
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
        """Counts the ticks of a whole row: 10^digits."""
        return int(10**self.digits)

    def __call__(self, answers: Tensor) -> Tensor:
        return dense(self.compact(answers))

    def compact(self, answers: Tensor | Named) -> Tensor | Named:
        if isinstance(answers, Named):
            return self._of_named(answers)
        classes = answers.shape[-1]
        # No class beyond the first ``ticks`` can get one.
        scores, places = top(answers, min(self.ticks, classes))
        total = answers.sum(-1, keepdim=True, dtype=torch.float64)
        return Named(self._rounded(scores, 0, total), places, 0.0, classes, scores.dtype)

    def _of_named(self, answers: Named) -> Named:
        scores, rest = answers.tensors()
        others = answers.classes - scores.shape[-1]
        if others == 0:
            return answers._replace(rest=0.0, scores=self._rounded(scores))
        entries = self._rounded(torch.cat([scores, rest * others], -1), others)
        return answers._replace(scores=entries[..., :-1], rest=entries[..., -1:] / others)

    def _rounded(self, entries: Tensor, others: int = 0, total: Tensor | None = None) -> Tensor:
        """Rounds entries that descend, but for the last one if ``others`` share it."""
        if total is None:
            total = entries.sum(-1, keepdim=True, dtype=torch.float64)
        shares = largest_remainders(entries, self.ticks, total)
        return crowned(shares, others).div_(self.ticks).to(entries.dtype)

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        return PrivacyCost(bits=grid_bits(classes, self.ticks, upstream.named))

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=1.0, named=upstream.named)

    def adversary_view(self, answers: Tensor) -> dict[str, Tensor]:
        return {"log p above half a tick": answers.clamp_min(0.5 / self.ticks).log()}


@dataclass(frozen=True)
class RoundTo(Defense):
    """Rounds every number to the nearest multiple of ``step``; halves go to the even one.

    Nothing is cut off and no number becomes zero unless it is nearer to zero than to a step. Its
    cost is counted only behind a clip, which bounds how many multiples there are.
    """

    step: float
    accepts = ("values", "embeddings")
    keeps_argmax = False
    may_overflow = True

    @classmethod
    def examples(cls) -> tuple[Defense, ...]:
        return (cls(0.5),)

    def __post_init__(self) -> None:
        positive("step", self.step)

    def __call__(self, answers: Tensor) -> Tensor:
        wide = answers.to(torch.float64)
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


def largest_remainders(entries: Tensor, ticks: int, total: Tensor) -> Tensor:
    """Shares ``ticks`` among the entries of each row in proportion to ``total``.

    Shapes: entries (..., k) >= 0, total (..., 1) -> (..., k) float64, whole numbers that sum to
    ``ticks``. Equal remainders go to the first entry; order is kept where entries descend.
    Source: Hamilton's method of apportionment.
    """
    exact = entries * (ticks * total.reciprocal())
    shares = exact.floor()
    order = exact.sub_(shares).argsort(dim=-1, descending=True, stable=True)
    missing = shares.sum(-1, keepdim=True).neg_().add_(ticks)
    served = torch.arange(entries.shape[-1], device=entries.device) < missing
    return shares.scatter_add_(-1, order, served.to(shares.dtype))


def crowned(shares: Tensor, others: int = 0) -> Tensor:
    """Moves one tick to the winner, the first entry, where another class has as many.

    It is taken from the last of its rivals, so that classes with equal probabilities keep the
    form (q + 1, ..., q + 1, q, ..., q). others: how many classes share the last entry.

    Shapes: shares (..., k), descending up to ``others`` -> (..., k), changed in place.
    """
    named = shares[..., :-1] if others else shares
    first = named[..., :1]
    last = (named == first).sum(-1, keepdim=True).sub_(1)
    if others:
        below = shares[..., -1:] < first * others
        last = torch.where(below, last, shares.shape[-1] - 1)
    if not is_captured() and not last.any():
        return shares  # nearly always
    tick = (last > 0).to(shares.dtype)
    shares.scatter_add_(-1, last, -tick)[..., :1].add_(tick)
    return shares
