"""A random label with a proof: the winner most of the time, any other class now and then."""

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
    """Names classes by answers and noise."""

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
        """Returns the named classes, as a function of answers and noise alone."""


@dataclass(frozen=True)
class RandomizedResponse(_Mechanism):
    """Releases the winner's class, or its class and confidence bin, or by chance any other one.

    With M = K x ``bins`` symbols the true one is kept with chance e^eps / (e^eps + M - 1), and
    each other one comes with chance 1 / (e^eps + M - 1); a draw is one 63-bit whole number, and
    the chances are whole multiples of 2^-63 rounded to the safe side.

    Guarantee: one row is (epsilon, 0)-differentially private between any two worlds, exactly.
    NOT promised: the same answer again; epsilon adds up, so let a ledger charge every answer.
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
        """Draws which other symbol is told, or that none is: a number past the last of them.

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
        """Counts, of 2^63 draws, those that give one certain other symbol."""
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
    """Releases a class chosen at random, the likelier the higher its probability.

    The classes come up in random order; each is taken with chance exp(-epsilon (p* - p) / 2), p*
    being the winner's probability, and the first one taken is released. Never worse than the
    exponential mechanism; worse than ``RandomizedResponse`` where the model is sure.

    Guarantee: one row is (epsilon, 0)-differentially private between any two worlds, up to a
        total variation of 2^-63 K^2: probabilities are cut to 1/1024, chances exact to 2^-128.
    NOT promised: as ``RandomizedResponse``.
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
        """Draws how far behind the winner each class is still taken, and whose turn comes first.

        Shapes: (..., classes) -> (..., classes, 2) int64: ticks, and a word.
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
    """Returns the symbol that is told: the others are numbered past the true one."""
    return where(noise < symbols - 1, noise + (noise >= symbol), symbol)


def _check_epsilon(epsilon: float) -> None:
    if positive("epsilon", epsilon) > _MAX_EPSILON:
        raise ConfigError(
            f"Expected epsilon <= {_MAX_EPSILON:g}, got epsilon={epsilon!r}: beyond it the true "
            "answer comes nearly always, and Label() says so plainly."
        )
