"""Which records a step of private training draws, and what that proves."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from shieldnet.core.errors import ConfigError
from shieldnet.core.randomness import bernoulli
from shieldnet.privacy.steps import Steps


class Sampler(ABC):
    """Says which records a step draws. A record is in a step once at most.

    size: of a step, on average; public. rate: size over the number of records.
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
