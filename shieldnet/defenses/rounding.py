"""Fewer digits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet._validate import whole
from shieldnet.defenses.base import UNBOUNDED, Defense
from shieldnet.price import Price, Reach, grid_bits


@dataclass(frozen=True)
class Round(Defense):
    """Rounds each row to a distribution on a grid of 10^-``digits``, by largest remainders.

    The work is done in whole ticks, so the answers that can occur are exactly the grid's and
    their number is the price. What rounding logits instead would remove is almost nothing.

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

    def __post_init__(self) -> None:
        whole("digits", self.digits, low=0, high=6)

    @property
    def ticks(self) -> int:
        """Counts the ticks of a whole row: 10^digits."""
        return int(10**self.digits)

    def __call__(self, answers: Tensor) -> Tensor:
        return (largest_remainders(answers, self.ticks) / self.ticks).to(answers.dtype)

    def price(self, classes: int, upstream: Reach = UNBOUNDED) -> Price:
        return Price(bits=grid_bits(classes, self.ticks, upstream.named))

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=1.0)

    def adversary_view(self, answers: Tensor) -> dict[str, Tensor]:
        return {"log p above half a tick": answers.clamp_min(0.5 / self.ticks).log()}


def largest_remainders(probabilities: Tensor, ticks: int) -> Tensor:
    """Shares ``ticks`` among the classes of each row in proportion, the winner strictly first.

    Shapes: (rows, classes) >= 0 -> (rows, classes) float64, whole numbers that sum to ``ticks``.
    Ties go to the first class. Source: Hamilton's method of apportionment.
    """
    classes = probabilities.shape[-1]
    exact = probabilities.to(torch.float64)
    exact = exact * (ticks / exact.sum(-1, keepdim=True))
    shares = exact.floor()
    missing = (ticks - shares.sum(-1, keepdim=True)).to(torch.int64)
    winner = probabilities.argmax(-1, keepdim=True)
    order = _class_order(exact - shares, winner)
    # Floors leave fewer than min(ticks, classes) to serve: no sort over all classes is needed.
    served = order.topk(min(ticks, classes), dim=-1).values
    least = served.gather(-1, (missing - 1).clamp_min(0))
    shares += (order >= least) & (missing > 0)
    return _crown(shares, winner)


def _class_order(remainders: Tensor, winner: Tensor) -> Tensor:
    """Makes remainders distinct whole numbers, earlier classes larger among equals.

    The winner comes before all that 40 bits cannot tell from it: no class may overtake it.
    """
    classes = remainders.shape[-1]
    place = torch.arange(classes - 1, -1, -1, device=remainders.device)
    order = (remainders * 2**40).to(torch.int64) * 2**22 + place
    return order.scatter_add_(-1, winner, torch.full_like(winner, 2**22))


def _crown(shares: Tensor, winner: Tensor) -> Tensor:
    """Moves one tick to the winner where another class has as many.

    It is taken from the last of its rivals, so that classes with equal probabilities keep the
    form (q + 1, ..., q + 1, q, ..., q): the count in ``grid_bits`` relies on it.
    """
    most = shares.gather(-1, winner)
    rivals = (shares >= most).scatter_(-1, winner, False)
    place = torch.arange(1, shares.shape[-1] + 1, device=shares.device)
    last = (rivals * place).argmax(-1, keepdim=True)
    tick = rivals.any(-1, keepdim=True).to(shares.dtype)
    return shares.scatter_add(-1, winner, tick).scatter_add(-1, last, -tick)
