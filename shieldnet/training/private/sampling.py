"""Which records a step of private training draws, and what that proves."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from shieldnet.core.errors import ConfigError
from shieldnet.core.randomness import bernoulli
from shieldnet.privacy.steps import Steps

_MAX_DEVIATIONS = 8  # beyond what is expected: by chance never


class Sampler(ABC):
    """Says which records a step draws. A record is in a step once at most.

    size: of a step, on average; public. rate: size over the number of records.
    That one of your own draws as its event says is your word: the guarantee names it among what
    it takes for granted.
    """

    @abstractmethod
    def size(self, records: int, batch_size: int | None) -> int:
        """Returns how many records a step draws on average, from 1 to ``records``.

        batch_size: of the user's or of a loader, None where there is none.
        """

    @abstractmethod
    def draw(self, records: int, rate: float) -> Tensor:
        """Draws a step anew. Shapes: -> (records,) bool on the CPU.

        Canaries are drawn by it too, as records of their own. Secret: draw with
        ``core.randomness.bernoulli``, which asks the operating system.
        """

    def event(self, noise: float, rate: float, steps: int) -> Steps | None:
        """Returns what so many steps with noise are to whoever knows all records but one.

        ``Steps`` are noisy sums of which each has that record with a chance, independently of all
        else that was drawn. None where nothing of the kind is known: no guarantee is stated then.
        noise: deviation, in what one record moves a sum by.
        """
        return None


@final
@dataclass(frozen=True)
class PoissonSampling(Sampler):
    """Draws every record by an independent Bernoulli draw in every step; the default.

    A batch has ``batch_size`` records on average, by default all: then each is always in.
    Guarantee: the chance of every record is exact to 2^-64.
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
    """Takes all records in every step: the Gaussian mechanism, composed exactly.

    A batch size of fewer is refused, a loader's too.
    Source: Dong, Roth, Su 2022 (arXiv:1905.02383), Corollary 3.3.
    """

    def size(self, records: int, batch_size: int | None) -> int:
        if batch_size is not None and batch_size < records:
            raise ConfigError(
                f"AllRecords takes all {records} records in every step, got a batch size of "
                f"{batch_size}. Leave batch_size out and pass the data without a loader, or take "
                "PoissonSampling()."
            )
        return records

    def draw(self, records: int, rate: float) -> Tensor:
        return torch.ones(records, dtype=torch.bool)

    def event(self, noise: float, rate: float, steps: int) -> Steps:
        return Steps(noise, 1.0, steps)


def is_proven(sampler: Sampler) -> bool:
    """Says whether it is ours that a sampler draws as its event says, or its author's word."""
    return type(sampler) in (PoissonSampling, AllRecords)


def checked_draws(sampler: Sampler, records: int, rate: float) -> Tensor:
    """Draws a step. Errors: ConfigError for draws of another form, or far more than stated.

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
                f"{sampler!r} drew {int(drawn.sum())} of {records} records in a step, where its "
                f"event says {event.rate:g} of them: the guarantee would be wrong."
            )
    return drawn
