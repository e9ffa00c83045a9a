"""Updates: the gradient of each step; here the mean gradient of a shuffled batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from shieldnet.core.randomness import noise_about, random_seed
from shieldnet.training.checkpoint import State
from shieldnet.training.distributed import Ranks
from shieldnet.training.ids import naming_ids
from shieldnet.training.objective import Objective
from shieldnet.training.records import Records
from shieldnet.training.traces import Tracing


class Updates(ABC):
    """Computes the gradient of every step for the trained weights of a model.

    keeps_buffers: whether changes of buffers by forward passes are kept. variation: bound on the
    total variation between a step's draws and the distribution that the proof assumes.
    """

    model: nn.Module
    keeps_buffers: ClassVar[bool] = True

    @property
    def variation(self) -> float:
        """Returns 0: nothing is proven about the draws."""
        return 0.0

    @abstractmethod
    def start(self, state: State) -> None:
        """Adds to a state what is drawn once per run, unless a checkpoint has it."""

    def prepare(self, tell: Callable[[str], None]) -> None:  # noqa: B027 - most need nothing
        """Prepares the steps of this process; ``tell`` gets a line if that may take long."""

    @abstractmethod
    def __call__(self, step: int, state: State) -> Sequence[Tensor]:
        """Returns the gradient of every trained weight in a step, in the model's order."""


@dataclass
class Sgd(Updates):
    """Learns from shuffled batches, without privacy. size: records per batch.

    tracing: keeps the losses of records; None where several processes share the records.
    """

    model: nn.Module
    records: Records
    objective: Objective
    size: int
    ranks: Ranks
    tracing: Tracing | None = None
    _order: tuple[int, Tensor] = field(default=(-1, torch.empty(0)))

    def start(self, state: State) -> None:
        """Does nothing: nothing is drawn once per run."""

    def __call__(self, step: int, state: State) -> Sequence[Tensor]:
        """Returns the mean gradient of a step's batch."""
        rows = self._drawn(step)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        shard = self.ranks.shard(rows)
        if not len(shard):
            return self.ranks.summed([torch.zeros_like(weight) for weight in weights])
        inputs, labels = self.records.rows(shard, weights[0].device)
        with naming_ids(self.model, self.records):
            inputs = self.objective.move(inputs, labels, self.model)
            losses = self.objective.losses(self.model, inputs, labels)
        if self.tracing is not None:
            self.tracing.keep(self._order[0], shard, losses)
        loss = losses.sum() / len(rows)
        gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
        return self.ranks.summed([gradient.contiguous() for gradient in gradients])

    def _drawn(self, step: int) -> Tensor:
        batches = -(-len(self.records) // self.size)
        epoch, batch = divmod(step, batches)
        if self._order[0] != epoch:
            with noise_about("epoch", epoch):
                generator = torch.Generator().manual_seed(random_seed())
            order = torch.randperm(len(self.records), generator=generator)
            self._order = (epoch, self.ranks.broadcast(order))
        # Batches of nearly equal size, since a single record has no batch statistics.
        return self._order[1].tensor_split(batches)[batch]
