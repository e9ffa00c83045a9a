"""Low-rank updates of linear layers: added, trained, and merged into the weights."""

import math

import torch
from torch import Tensor, nn

from shieldnet.training.layers import shared_weights

Holders = list[tuple[nn.Module, str]]
"""All places of a layer: the modules that contain it, each with its name there."""


class LowRank(nn.Module):
    """Adds a trainable product of two thin matrices, initially 0, to a frozen linear layer.

    base: nn.Linear, or Hugging Face's Conv1D, a linear layer whose weight is transposed.
    Source: Hu et al. 2022 (arXiv:2106.09685).
    """

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        like = base.get_parameter("weight")
        self.transposed = not isinstance(base, nn.Linear)
        outputs, inputs = like.shape[::-1] if self.transposed else like.shape
        self.down = nn.Linear(inputs, rank, bias=False).to(like.device, like.dtype)
        self.up = nn.Linear(rank, outputs, bias=False).to(like.device, like.dtype)
        nn.init.normal_(self.down.weight, std=1 / math.sqrt(inputs))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the layer's output with the update."""
        output: Tensor = self.base(x) + self.up(self.down(x))
        return output

    @property
    def weight(self) -> Tensor:
        """Returns the updated weight, for models that read it directly."""
        change = self.up.weight @ self.down.weight
        return self.base.get_parameter("weight") + (change.T if self.transposed else change)

    @property
    def bias(self) -> Tensor | None:
        """Returns the layer's bias."""
        bias: Tensor | None = self.base.bias  # type: ignore[assignment]  # a linear layer's
        return bias

    def merged(self) -> nn.Module:
        """Returns the layer with the update merged into its weights."""
        with torch.no_grad():
            self.base.get_parameter("weight").copy_(self.weight)
        return self.base


def add_low_rank(model: nn.Module, rank: int) -> None:
    """Adds a low-rank update to every linear layer without tied weights."""
    for layer, holders in _linear_layers(model):
        changed = LowRank(layer, rank).train(model.training)
        for holder, name in holders:
            setattr(holder, name, changed)


def merge(model: nn.Module) -> list[str]:
    """Merges every low-rank update into its weights and returns their names."""
    changed = [module for module in model.modules() if isinstance(module, LowRank)]
    layers = {id(module): module.merged() for module in changed}
    for holder in list(model.modules()):
        for name, child in list(holder._modules.items()):  # shared layers at every place
            if isinstance(child, LowRank):
                setattr(holder, name, layers[id(child)])
    touched = {id(layer.get_parameter("weight")) for layer in layers.values()}
    named = model.named_parameters(remove_duplicate=False)
    return [name for name, weight in named if id(weight) in touched]


def _linear_layers(model: nn.Module) -> list[tuple[nn.Module, Holders]]:
    """Lists linear layers without tied weights, each with all its places."""
    tied = shared_weights(model)
    layers: dict[int, tuple[nn.Module, Holders]] = {}
    for holder in model.modules():
        for name, child in holder._modules.items():
            is_linear = type(child) is nn.Linear or type(child).__name__ == "Conv1D"
            if child is not None and is_linear and id(child.weight) not in tied:
                layers.setdefault(id(child), (child, []))[1].append((holder, name))
    return list(layers.values())
