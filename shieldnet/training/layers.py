"""The layers of a model that hold weights, and the weights that several of them share."""

from torch import nn

from shieldnet.core.errors import ConfigError


def weight_holders(model: nn.Module) -> list[nn.Module]:
    """Lists the modules that hold weights of their own, in the model's order."""
    return [module for module in model.modules() if list(module.parameters(recurse=False))]


def last_layer(model: nn.Module) -> nn.Module:
    """Returns the last module that holds weights of its own."""
    holders = weight_holders(model)
    if not holders:
        raise ConfigError("Expected a model with weights, got one without.")
    return holders[-1]


def shared_weights(model: nn.Module) -> set[int]:
    """Returns the ids of weights that more than one module holds."""
    counts: dict[int, int] = {}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            counts[id(weight)] = counts.get(id(weight), 0) + 1
    return {key for key, count in counts.items() if count > 1}
