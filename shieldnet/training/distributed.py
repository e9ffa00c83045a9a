"""Several processes that train one model together: they share each batch and agree on the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shieldnet.core.checks import quietly


@dataclass(frozen=True)
class Ranks:
    """Says which of how many processes this is; alone by default.

    Draws and noise are the first one's: the others are told, and the sum that all get is the one
    that a single process would have got.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> "Ranks":
        """Finds the process group that ``torchrun`` or a cluster has set up, if there is one."""
        group = torch.distributed
        if not (group.is_available() and group.is_initialized()):
            return cls()
        return cls(group.get_rank(), group.get_world_size())

    @property
    def is_first(self) -> bool:
        """Says whether this is the process that draws, adds noise and writes."""
        return self.rank == 0

    def agree(self, model: nn.Module) -> None:
        """Gives every process the first one's weights and buffers."""
        if self.count > 1:
            opacus = quietly("opacus.distributed")
            opacus.DifferentiallyPrivateDistributedDataParallel(model)  # it sends them when made
            for one in model.buffers():
                torch.distributed.broadcast(one, 0)

    def told(self, drawn: Tensor) -> Tensor:
        """Returns what the first process drew: of the same shape everywhere."""
        if self.count > 1:
            drawn = drawn.clone()
            torch.distributed.broadcast(drawn, 0)
        return drawn

    def share(self, rows: Tensor) -> Tensor:
        """Returns the rows that are this process's own."""
        return rows[self.rank :: self.count]

    def summed(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Adds up what every process has, in place."""
        if self.count > 1:
            for one in parts:
                torch.distributed.all_reduce(one)
        return parts
