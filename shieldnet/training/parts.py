"""Which weights are trained: all, the last layer, the biases, or a low-rank change of them."""

import math

import torch
from torch import Tensor, nn

from shieldnet.errors import ConfigError

PARTS = ("full", "last", "bias", "lora")


class LowRank(nn.Module):
    """Adds a trainable product of two thin matrices to a linear layer that stays as it is.

    Source: Hu et al. 2022 (arXiv:2106.09685). The change starts at 0.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        like = base.weight
        self.down = nn.Linear(base.in_features, rank, bias=False).to(like.device, like.dtype)
        self.up = nn.Linear(rank, base.out_features, bias=False).to(like.device, like.dtype)
        nn.init.normal_(self.down.weight, std=1 / math.sqrt(base.in_features))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the layer says, and the change."""
        said: Tensor = self.base(x) + self.up(self.down(x))
        return said

    @property
    def weight(self) -> Tensor:
        """Returns the changed weight, for models that read it past the layer."""
        return self.base.weight + self.up.weight @ self.down.weight

    @property
    def bias(self) -> Tensor | None:
        """Returns the layer's own bias."""
        return self.base.bias

    def merged(self) -> nn.Linear:
        """Returns the layer with the change in its weights."""
        with torch.no_grad():
            self.base.weight += self.up.weight @ self.down.weight
        return self.base


def choose_part(model: nn.Module, part: str, rank: int) -> None:
    """Leaves requires_grad with the weights of the part alone, of those that had it.

    last: the last module that holds weights, in the order in which the model lists them.
    Errors: ConfigError where nothing would be trained.
    """
    trainable = [one for one in model.parameters() if one.requires_grad]
    if part == "bias":
        biases = {id(one) for name, one in model.named_parameters() if name.endswith("bias")}
        for one in trainable:
            one.requires_grad_(id(one) in biases)
    elif part == "last":
        kept = {id(one) for one in last_layer(model).parameters(recurse=False)}
        for one in trainable:
            one.requires_grad_(id(one) in kept)
    elif part == "lora":
        for one in trainable:
            one.requires_grad_(False)
        for holder, name, layer in _linears(model):
            setattr(holder, name, LowRank(layer, rank).train(model.training))
    if not any(one.requires_grad for one in model.parameters()):
        raise ConfigError(
            f"There is nothing to train with part={part!r}: "
            + ("the model has no nn.Linear." if part == "lora" else "no such weight requires grad.")
        )


def merge(model: nn.Module) -> None:
    """Puts every low-rank change into the weights that it changes."""
    for holder in list(model.modules()):
        for name, child in list(holder.named_children()):
            if isinstance(child, LowRank):
                setattr(holder, name, child.merged())


def last_layer(model: nn.Module) -> nn.Module:
    """Returns the last module that holds weights of its own."""
    holders = [one for one in model.modules() if list(one.parameters(recurse=False))]
    if not holders:
        raise ConfigError("Expected a model with weights, got one without.")
    return holders[-1]


def _linears(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    found: dict[int, tuple[nn.Module, str, nn.Linear]] = {}
    for holder in model.modules():
        for name, child in holder.named_children():
            if type(child) is nn.Linear and id(child) not in found:
                found[id(child)] = (holder, name, child)
    return list(found.values())
