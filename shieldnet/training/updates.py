"""What a step moves the weights by: the mean gradient of a batch of a shuffled order."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from shieldnet.core.randomness import noise_about, random_seed
from shieldnet.training.checkpoint import State
from shieldnet.training.distributed import Ranks
from shieldnet.training.objective import Objective
from shieldnet.training.records import Records


class Updates(ABC):
    """Computes the gradient of every step, for the weights of one model that are trained.

    keeps_buffers: whether what a forward pass leaves in the buffers stays there. variation: bounds
    the total variation between what a step draws and the law that a proof is about.
    """

    model: nn.Module
    keeps_buffers: ClassVar[bool] = True

    @property
    def variation(self) -> float:
        """Returns 0: nothing is proven of what is drawn."""
        return 0.0

    @abstractmethod
    def start(self, state: State) -> None:
        """Puts into a state what a run draws once, unless a checkpoint brought it."""

    @abstractmethod
    def __call__(self, step: int, state: State) -> Sequence[Tensor]:
        """Returns a step's gradient of every weight that is trained, in the model's order."""


@dataclass
class Sgd(Updates):
    """Learns from batches of a shuffled order, as everybody does. size: records of a batch."""

    model: nn.Module
    records: Records
    objective: Objective
    size: int
    ranks: Ranks
    _order: tuple[int, Tensor] = field(default=(-1, torch.empty(0)))

    def start(self, state: State) -> None:
        """Needs nothing that a checkpoint holds."""

    def __call__(self, step: int, state: State) -> Sequence[Tensor]:
        """Returns the mean gradient of a step's batch."""
        rows = self._drawn(step)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        shard = self.ranks.shard(rows)
        if not len(shard):
            return self.ranks.summed([torch.zeros_like(weight) for weight in weights])
        inputs, labels = self.records.rows(shard, weights[0].device)
        inputs = self.objective.move(inputs, labels, self.model)
        loss = self.objective.losses(self.model, inputs, labels).sum() / len(rows)
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
        # Batches as even as they can be: one record alone has no batch statistics.
        return self._order[1].tensor_split(batches)[batch]
