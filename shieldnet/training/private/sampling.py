"""Samplers: the records that a step of private training draws, and what that proves."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from shieldnet.core.errors import ConfigError
from shieldnet.core.randomness import bernoulli
from shieldnet.privacy.steps import Steps

_MAX_DEVIATIONS = 8  # above the expected number: practically impossible by chance


class Sampler(ABC):
    """Chooses the records of each step; a record is in a step at most once.

    size: average number of records per step, public. rate: size divided by the number of records.
    A guarantee with a custom sampler lists, as a premise, that it draws as its event states.
    """

    @abstractmethod
    def size(self, records: int, batch_size: int | None) -> int:
        """Returns the average number of records per step, from 1 to ``records``.

        batch_size: as set by the user or a loader, or None.
        """

    @abstractmethod
    def draw(self, records: int, rate: float) -> Tensor:
        """Draws the records of one step. Shapes: -> (records,) bool on the CPU.

        It also draws canaries, as additional records. The draw is secret: use
        ``core.randomness.bernoulli``, which draws from the operating system.
        """

    def event(self, noise: float, rate: float, steps: int) -> Steps | None:
        """Returns the privacy event of ``steps`` noisy sums, or None to state no guarantee.

        ``Steps`` are noisy sums, each of which contains any given record with probability ``rate``,
        independently of all other draws.
        noise: standard deviation, as a multiple of the most that one record moves a sum.
        """
        return None


@final
@dataclass(frozen=True)
class PoissonSampling(Sampler):
    """Draws every record independently in every step; the default.

    A batch has ``batch_size`` records on average; by default all, always.
    Guarantee: the probability of drawing a record is exact to 2^-64.
    Source: Abadi et al. 2016 (arXiv:1607.00133); Mironov, Talwar, Zhang 2019 (arXiv:1908.10530).
    """

    def size(self, records: int, batch_size: int | None) -> int:
        return min(records, batch_size or records)

    def draw(self, records: int, rate: float) -> Tensor:
        return bernoulli(records, rate)

    def event(self, noise: float, rate: float, steps: int) -> Steps:
        return Steps(noise, rate, steps)


@final
@dataclass(frozen=True)
class AllRecords(Sampler):
    """Draws all records in every step: the Gaussian mechanism, composed exactly.

    A smaller batch size, including that of a loader, is refused.
    Source: Dong, Roth, Su 2022 (arXiv:1905.02383), Corollary 3.3.
    """

    def size(self, records: int, batch_size: int | None) -> int:
        if batch_size is not None and batch_size < records:
            raise ConfigError(
                f"AllRecords draws all {records} records in every step, got a batch size of "
                f"{batch_size}. Omit batch_size and pass the data without a loader, or take "
                "PoissonSampling()."
            )
        return records

    def draw(self, records: int, rate: float) -> Tensor:
        return torch.ones(records, dtype=torch.bool)

    def event(self, noise: float, rate: float, steps: int) -> Steps:
        return Steps(noise, 1.0, steps)


def is_proven(sampler: Sampler) -> bool:
    """Returns whether a sampler is built in; that others draw as stated is a premise."""
    return type(sampler) in (PoissonSampling, AllRecords)


def checked_draws(sampler: Sampler, records: int, rate: float) -> Tensor:
    """Draws a step. Errors: ConfigError for draws of another form, or far too many records.

    Shapes: -> (records,) bool.
    """
    drawn: object = sampler.draw(records, rate)
    if not isinstance(drawn, Tensor) or drawn.shape != (records,) or drawn.dtype != torch.bool:
        shown = f"{tuple(drawn.shape)} {drawn.dtype}" if isinstance(drawn, Tensor) else repr(drawn)
        raise ConfigError(f"Expected {sampler!r} to draw ({records},) bool, got {shown}.")
    event = None if is_proven(sampler) else sampler.event(1.0, rate, 1)
    if event is not None:
        spread = math.sqrt(records * event.rate * (1 - event.rate))
        most = records * event.rate + _MAX_DEVIATIONS * (spread + 1)
        if int(drawn.sum()) > most:
            raise ConfigError(
                f"{sampler!r} drew {int(drawn.sum())} of {records} records in a step, but its "
                f"event states a rate of {event.rate:g}: the guarantee would be wrong."
            )
    return drawn
