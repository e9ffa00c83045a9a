"""Which weights are trained: all, the last layer, the biases, or a low-rank change of them."""

import math

import torch
from torch import Tensor, nn

from shieldnet.core.errors import ConfigError

PARTS = ("full", "last", "bias", "lora")


class LowRank(nn.Module):
    """Adds a trainable product of two thin matrices to a linear layer that stays as it is.

    base: nn.Linear, or Hugging Face's Conv1D, a linear layer whose weight is transposed.
    Source: Hu et al. 2022 (arXiv:2106.09685). The change starts at 0.
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
        """Returns what the layer says, and the change."""
        said: Tensor = self.base(x) + self.up(self.down(x))
        return said

    @property
    def weight(self) -> Tensor:
        """Returns the changed weight, for models that read it past the layer."""
        change = self.up.weight @ self.down.weight
        return self.base.get_parameter("weight") + (change.T if self.transposed else change)

    @property
    def bias(self) -> Tensor | None:
        """Returns the layer's own bias."""
        found: Tensor | None = self.base.bias  # type: ignore[assignment]  # a linear layer's
        return found

    def merged(self) -> nn.Module:
        """Returns the layer with the change in its weights."""
        with torch.no_grad():
            self.base.get_parameter("weight").copy_(self.weight)
        return self.base


def choose_part(model: nn.Module, part: str, rank: int) -> None:
    """Leaves requires_grad with the weights of the part alone, of those that had it.

    last: the last module that holds weights, in the order in which the model lists them. lora:
    every linear layer; one whose weight another module holds too stays as it is.
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
        for layer, places in _linears(model):
            changed = LowRank(layer, rank).train(model.training)
            for holder, name in places:
                setattr(holder, name, changed)
    if not any(one.requires_grad for one in model.parameters()):
        why = "no such weight requires grad"
        if part == "lora":
            why = "the model holds no nn.Linear whose weight is its own"
        raise ConfigError(f"There is nothing to train with part={part!r}: {why}.")


def merge(model: nn.Module) -> list[str]:
    """Puts every low-rank change into the weights that it changes, and names these."""
    changed = [one for one in model.modules() if isinstance(one, LowRank)]
    layers = {id(one): one.merged() for one in changed}
    for holder in list(model.modules()):
        for name, child in list(holder._modules.items()):  # shared ones everywhere they stand
            if isinstance(child, LowRank):
                setattr(holder, name, layers[id(child)])
    touched = {id(one.get_parameter("weight")) for one in layers.values()}
    named = model.named_parameters(remove_duplicate=False)
    return [name for name, one in named if id(one) in touched]


def last_layer(model: nn.Module) -> nn.Module:
    """Returns the last module that holds weights of its own."""
    holders = weight_holders(model)
    if not holders:
        raise ConfigError("Expected a model with weights, got one without.")
    return holders[-1]


def weight_holders(model: nn.Module) -> list[nn.Module]:
    """Lists the modules that hold weights of their own, in the model's order."""
    return [one for one in model.modules() if list(one.parameters(recurse=False))]


def shared_weights(model: nn.Module) -> set[int]:
    """Returns the ids of weights that more than one module holds."""
    counts: dict[int, int] = {}
    for module in model.modules():
        for one in module.parameters(recurse=False):
            counts[id(one)] = counts.get(id(one), 0) + 1
    return {key for key, count in counts.items() if count > 1}


def _linears(model: nn.Module) -> list[tuple[nn.Module, list[tuple[nn.Module, str]]]]:
    """Lists linear layers with everywhere they stand; those with tied weights are left out."""
    tied = shared_weights(model)
    found: dict[int, tuple[nn.Module, list[tuple[nn.Module, str]]]] = {}
    for holder in model.modules():
        for name, child in holder._modules.items():
            is_linear = type(child) is nn.Linear or type(child).__name__ == "Conv1D"
            if child is not None and is_linear and id(child.weight) not in tied:
                found.setdefault(id(child), (child, []))[1].append((holder, name))
    return list(found.values())
