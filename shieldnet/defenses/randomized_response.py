"""Random labels with a proven privacy cost."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.core.checks import positive, whole
from shieldnet.core.errors import ConfigError
from shieldnet.core.exact_tables import FLIP_TICKS
from shieldnet.core.randomness import coin_reach, random_words
from shieldnet.defenses.base import UNBOUNDED, Defense, Naming
from shieldnet.defenses.labels import Bins
from shieldnet.defenses.named import (
    Array,
    Named,
    all_on,
    dense,
    like,
    where,
    whole_quotient,
    winner,
    winner_place,
)
from shieldnet.privacy.cost import PrivacyCost, Reach, pure_cost
from shieldnet.privacy.events import Event, RandomizedResponseEvent

_MAX_EPSILON = 32.0
_TOTAL = 2**63
_SAFE = 1 + 2.0**-48  # wider than the rounding of the floats that it is made of


@dataclass(frozen=True)
class _Mechanism(Naming):
    """Chooses classes, given answers and noise."""

    def named(self, answers: Tensor) -> Named:
        return self.named_with(answers, self.draw(answers.shape).to(answers.device))

    def with_noise(self, answers: Tensor, noise: Tensor) -> Tensor:
        return self.named_with(answers, noise).dense()

    def compact_with(self, answers: Tensor | Named, noise: Tensor) -> Tensor | Named:
        return self.named_with(dense(answers), noise)

    @abstractmethod
    def draw(self, shape: torch.Size) -> Tensor: ...

    @abstractmethod
    def named_with(self, answers: Tensor, noise: Tensor) -> Named:
        """Returns the chosen classes as a function of answers and noise alone."""


@dataclass(frozen=True)
class RandomizedResponse(_Mechanism):
    """Releases the winning class, or at random any other class.

    epsilon: privacy budget of one answer, above 0 and at most 32; no default. bins: number of
        confidence bins, 1 to 2^20, default 1; with more than one, a class and a bin are released.
    With M = K x ``bins`` symbols for K classes, the true symbol is released with probability
    e^eps / (e^eps + M - 1), and each other one with 1 / (e^eps + M - 1). A draw is one integer of
    63 bits; probabilities are multiples of 2^-63, rounded to the safe side.
    Guarantee: a row is (epsilon, 0)-differentially private for any two inputs, exactly.
    NOT promised: the same answer to the same query, and the same cost for repeated queries:
        epsilons add up. Charge every answer to a ledger.
    Errors: ConfigError for other settings, and for more symbols than 63 bits can tell apart.
    Source: Warner 1965; Kairouz, Oh, Viswanath 2014 (arXiv:1407.1338).
    """

    epsilon: float
    bins: int = 1
    keeps_argmax = False
    deterministic = False

    @classmethod
    def examples(cls) -> tuple[Defense, ...]:
        return (cls(2.0), cls(2.0, bins=4))

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
        whole("bins", self.bins, low=1, high=2**20)

    def draw(self, shape: torch.Size) -> Tensor:
        """Draws which other symbol is released; a number past the last of them means none.

        Shapes: (..., classes) -> (..., 1) int64.
        """
        words = random_words(math.prod(shape[:-1])).reshape(*shape[:-1], 1)
        other = self.draws_of_other(shape[-1] * self.bins)
        return (words & (_TOTAL - 1)).div(other, rounding_mode="floor")

    def named_with(self, answers: Tensor, noise: Tensor) -> Named:
        classes = answers.shape[-1]
        if self.bins == 1:
            index = winner_place(answers)
            told = _told(index, like(noise, index), classes)
            return all_on(told, classes, answers.dtype)
        score, index = winner(answers)
        bins = Bins.of(self.bins, answers)
        symbol = index * self.bins + bins.index(score)
        symbol = _told(symbol, like(noise, symbol), classes * self.bins)
        return bins.named(symbol % self.bins, whole_quotient(symbol, self.bins))

    def draws_of_other(self, symbols: int) -> int:
        """Returns how many of the 2^63 possible draws release one given other symbol."""
        share = _TOTAL / (math.exp(self.epsilon) + symbols - 1)
        other = int(share * _SAFE) + 1
        if _TOTAL - (symbols - 1) * other < other:
            raise ConfigError(
                f"{self} cannot tell {symbols} symbols apart with 63 random bits: choose fewer "
                "bins or a larger epsilon."
            )
        return other

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        self.draws_of_other(classes * self.bins)
        return pure_cost(self.epsilon, answers=classes * self.bins)

    def event(self, classes: int, upstream: Reach = UNBOUNDED) -> Event:
        return RandomizedResponseEvent(self.epsilon, classes * self.bins)

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=1.0, named=1)


@dataclass(frozen=True)
class PermuteAndFlip(_Mechanism):
    """Releases a random class, more likely one with a higher probability.

    epsilon: privacy budget of one answer, above 0 and at most 32; no default.
    The classes are tried in random order. Each is accepted with probability
    exp(-epsilon (p* - p) / 2), where p* is the winner's probability, and the first one accepted is
    released. It is never less accurate than the exponential mechanism, and less accurate than
    ``RandomizedResponse`` for confident models.
    Guarantee: a row is (epsilon, 0)-differentially private for any two inputs, up to a total
        variation of 2^-63 K^2: probabilities are truncated to multiples of 1/1024, and acceptance
        is exact to 2^-128.
    NOT promised: as in ``RandomizedResponse``.
    Errors: ConfigError for another epsilon.
    Source: McKenna and Sheldon 2020, Algorithm 1 (arXiv:2010.12603), with sensitivity 1.
    """

    epsilon: float
    keeps_argmax = False
    deterministic = False

    @classmethod
    def examples(cls) -> tuple[Defense, ...]:
        return (cls(2.0),)

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)

    def draw(self, shape: torch.Size) -> Tensor:
        """Draws for each class how far below the winner it is accepted, and its place in the order.

        Shapes: (..., classes) -> (..., classes, 2) int64: ticks, and a word of 64 bits.
        """
        reach = coin_reach(shape, self.epsilon)
        return torch.stack([reach, random_words(math.prod(shape)).reshape(shape)], -1)

    def named_with(self, answers: Tensor, noise: Tensor) -> Named:
        reach, turn = noise.unbind(-1)
        ticks = (answers * FLIP_TICKS).to(torch.int64)
        taken = ticks.amax(-1, keepdim=True) - ticks < reach
        last = torch.iinfo(torch.int64).max
        first = torch.where(taken, turn, last).argmin(-1, keepdim=True)
        return all_on(first, answers.shape[-1], answers.dtype)

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        return pure_cost(self.epsilon, answers=classes)

    def reach(self, classes: int, upstream: Reach = UNBOUNDED) -> Reach:
        return Reach(radius=1.0, named=1)


def _told(symbol: Array, noise: Array, symbols: int) -> Array:
    """Returns the symbol to release; the others are numbered without the true one."""
    return where(noise < symbols - 1, noise + (noise >= symbol), symbol)


def _check_epsilon(epsilon: float) -> None:
    if positive("epsilon", epsilon) > _MAX_EPSILON:
        raise ConfigError(
            f"Expected epsilon <= {_MAX_EPSILON:g}, got epsilon={epsilon!r}: beyond it the true "
            "answer comes nearly always, and Label() says so plainly."
        )
