"""Distributed training: several processes share every batch and agree on everything else."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shieldnet.core.checks import quietly


@dataclass(frozen=True)
class Ranks:
    """Holds the rank of this process and the number of processes; by default a single one.

    The first process draws records and noise and broadcasts them; the resulting sum equals that of
    a single process.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def from_torch(cls) -> "Ranks":
        """Reads the rank from torch's process group, if ``torchrun`` or a cluster set one up."""
        group = torch.distributed
        if not (group.is_available() and group.is_initialized()):
            return cls()
        return cls(group.get_rank(), group.get_world_size())

    @property
    def is_first(self) -> bool:
        """Returns whether this process draws, adds noise and writes files."""
        return self.rank == 0

    def sync(self, model: nn.Module) -> None:
        """Copies the first process's weights and buffers to all processes."""
        if self.count > 1:
            opacus = quietly("opacus.distributed")
            opacus.DifferentiallyPrivateDistributedDataParallel(model)  # sends them on creation
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Returns the first process's tensor; all must have the same shape."""
        if self.count > 1:
            tensor = tensor.clone()
            torch.distributed.broadcast(tensor, 0)
        return tensor

    def shard(self, rows: Tensor) -> Tensor:
        """Returns this process's share of the rows."""
        return rows[self.rank :: self.count]

    def summed(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Sums the tensors over all processes, in place."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)
        return tensors
