"""Several processes that train one model together: they share each batch and agree on the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shieldnet.core.checks import quietly


@dataclass(frozen=True)
class Ranks:
    """Says which of how many processes this is; alone by default.

    Draws and noise are the first one's: it broadcasts them to the others, and the sum that all get
    is the one that a single process would have got.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def from_torch(cls) -> "Ranks":
        """Finds the process group that ``torchrun`` or a cluster has set up, if there is one."""
        group = torch.distributed
        if not (group.is_available() and group.is_initialized()):
            return cls()
        return cls(group.get_rank(), group.get_world_size())

    @property
    def is_first(self) -> bool:
        """Says whether this is the process that draws, adds noise and writes."""
        return self.rank == 0

    def sync(self, model: nn.Module) -> None:
        """Gives every process the first one's weights and buffers."""
        if self.count > 1:
            opacus = quietly("opacus.distributed")
            opacus.DifferentiallyPrivateDistributedDataParallel(model)  # it sends them when made
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Returns the first process's tensor: of the same shape everywhere."""
        if self.count > 1:
            tensor = tensor.clone()
            torch.distributed.broadcast(tensor, 0)
        return tensor

    def shard(self, rows: Tensor) -> Tensor:
        """Returns the rows that are this process's own."""
        return rows[self.rank :: self.count]

    def summed(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Adds up what every process has, in place."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)
        return tensors
