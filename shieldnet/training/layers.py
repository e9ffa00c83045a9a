"""Layers of a model that have weights, and weights that several layers share."""

from torch import nn

from shieldnet.core.errors import ConfigError


def weight_holders(model: nn.Module) -> list[nn.Module]:
    """Returns the modules with direct weights, in the order of ``model.modules()``."""
    return [module for module in model.modules() if list(module.parameters(recurse=False))]


def last_layer(model: nn.Module) -> nn.Module:
    """Returns the last module with direct weights."""
    holders = weight_holders(model)
    if not holders:
        raise ConfigError("Expected a model with weights, got one without.")
    return holders[-1]


def shared_weights(model: nn.Module) -> set[int]:
    """Returns the ids of weights that several modules share."""
    counts: dict[int, int] = {}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            counts[id(weight)] = counts.get(id(weight), 0) + 1
    return {key for key, count in counts.items() if count > 1}
