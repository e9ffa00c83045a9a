"""Models that cannot be shielded as they are: layers that mix rows, inputs on another device."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from shieldnet.errors import AnswerError


def refuse_mixing_layers(model: nn.Module) -> None:
    """Refuses layers whose answers would be random or depend on the rest of the batch."""
    waiting, seen = [model], set()
    while waiting:  # what model.modules() does, at a third of its time
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        waiting.extend(child for child in module._modules.values() if child is not None)
        kind = type(module)
        suspect = _SUSPECTS.get(kind)
        if suspect is None:
            suspect = _SUSPECTS[kind] = issubclass(kind, _MIXING)
        if suspect and (_mixes_rows(module) or (module.training and _draws_at_random(module))):
            name = next(name for name, one in model.named_modules() if one is module)
            mend = "Call shield.eval() first." if module.training else "Track its statistics."
            raise AnswerError(
                f"The model's layer {name or 'model'} ({type(module).__name__}) would make "
                f"answers random or let rows of a batch change each other. {mend}"
            )


_MIXING = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.RNNBase,
    nn.MultiheadAttention,
)
_SUSPECTS: dict[type[nn.Module], bool] = {}


def _mixes_rows(module: nn.Module) -> bool:
    is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return is_norm and (module.training or module.running_mean is None)


def _draws_at_random(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0


def explain_devices(failed: RuntimeError, model: nn.Module, values: Iterable[Any]) -> None:
    """Raises AnswerError where a model failed because its input is on another device."""
    own = {parameter.device for parameter in model.parameters()}
    given = {value.device for value in values if isinstance(value, Tensor)}
    if own and given - own:
        raise AnswerError(
            f"The input is on {_listed(given)}, the model on {_listed(own)}: move one to the other."
        ) from failed


def _listed(devices: Iterable[torch.device]) -> str:
    return " and ".join(sorted(map(str, devices)))
