"""Models of several inputs: a record's inputs in one tensor, and a model that takes them apart.

Private training traces a graph of one record's inputs and label. With ``input_ids`` and
``attention_mask`` in one row, all of a record is in that row, and nothing else is.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from shieldnet.core.errors import ConfigError
from shieldnet.data.packing import STACKED, Packing
from shieldnet.training.countermeasures.base import Countermeasure


def taking_one(packing: Packing, model: nn.Module) -> nn.Module:
    """Returns a copy of a model that takes rows in place of its inputs, under its own names."""
    copied = copy.deepcopy(model)
    copied.__dict__["forward"] = _Unpacking(packing, copied)
    return copied


def taking_several(model: nn.Module) -> None:
    """Has a copy that ``taking_one`` made take its own inputs again; no other changes."""
    unpacking = model.__dict__.get("forward")
    if isinstance(unpacking, _Unpacking):
        del model.__dict__["forward"]
        if unpacking.is_attribute:
            model.__dict__["forward"] = unpacking.forward


def own_forward(model: nn.Module) -> Callable[..., Any]:
    """Returns a model's forward, of a copy that ``taking_one`` made the one of the original."""
    unpacking = model.__dict__.get("forward")
    return unpacking.forward if isinstance(unpacking, _Unpacking) else model.forward


def require_whole_inputs(countermeasures: Sequence[Countermeasure]) -> None:
    """Raises ConfigError for countermeasures that would change several inputs as one."""
    for measure in countermeasures:
        if not measure.keeps_inputs:
            raise ConfigError(
                f"{type(measure).__name__} changes or reads inputs that are one tensor, and these "
                "records have several. Leave it out, or train a model that takes one stacked "
                f"tensor. {STACKED}"
            )


class _Unpacking:
    """Replaces a model's forward."""

    def __init__(self, packing: Packing, model: nn.Module) -> None:
        self.packing, self.forward = packing, model.forward
        self.is_attribute = "forward" in model.__dict__  # as of a model that accelerate moves

    def __call__(self, rows: Tensor) -> Any:
        args, kwargs = self.packing.unpacked(rows)
        return self.forward(*args, **kwargs)
