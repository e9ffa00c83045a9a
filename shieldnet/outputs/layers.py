"""A model's layers, looked at once, and again only where something about them changed."""

from itertools import chain
from typing import Any

from torch import nn

from shieldnet.core.opaque_ops import is_captured
from shieldnet.outputs.row_mixing import refuse_mixing_layers

Mode = tuple[int, int]
"""How many modules there are, and how many of them are in training mode."""


class Layers:
    """Refuses layers that mix rows or draw at random, at the cost of a few comparisons a call.

    Compared are which modules there are, their modes, and whether normalizations have statistics.
    While any module is in training mode, all are looked at each time.
    Errors: AnswerError, as ``refuse_mixing_layers``.
    """

    def __init__(self) -> None:
        self._mode: Mode = (0, 0)
        self._modules: list[nn.Module] = []
        self._tables: list[dict[str, Any]] = []
        self._children: list[Any] = []
        self._statistics: list[dict[str, Any]] = []

    def mode(self, model: nn.Module) -> Mode:
        """Returns the mode of a model's layers, or refuses them."""
        if is_captured():  # the graph that is drawn keeps no comparisons
            return refuse_mixing_layers(model)
        return self._mode if self._are_as_they_were(model) else self._look(model)

    def _are_as_they_were(self, model: nn.Module) -> bool:
        modules = self._modules
        return (
            bool(modules)
            and modules[0] is model
            and [*chain.from_iterable(map(dict.values, self._tables))] == self._children
            and True not in [module.training for module in modules]
            and True not in [buffers.get("running_mean") is None for buffers in self._statistics]
        )

    def _look(self, model: nn.Module) -> Mode:
        self._modules = []
        count, training = refuse_mixing_layers(model)
        if not training:
            self._mode = count, training
            self._modules = modules = list(model.modules())
            self._tables = [module._modules for module in modules]
            self._children = [*chain.from_iterable(map(dict.values, self._tables))]
            norms = [part for part in modules if isinstance(part, nn.modules.batchnorm._BatchNorm)]
            self._statistics = [norm._buffers for norm in norms]
        return count, training
