"""Which weights are trained: all, the last layer, the biases, or a low-rank change of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from torch import nn

from shieldnet.core.checks import whole
from shieldnet.core.errors import ConfigError
from shieldnet.training.layers import last_layer
from shieldnet.training.low_rank import add_low_rank

__all__ = ["Biases", "Full", "LastLayer", "LoRA", "Trainable"]


class Trainable(ABC):
    """Says which weights of a model are trained: ``finetune(model, data, train=LoRA(4))``.

    last_layer_alone: whether all but the last layer only computes; what goes into that layer is
    then computed once for each record, where nothing else changes it. nothing: why there may be
    nothing to train, for the error.
    """

    last_layer_alone: ClassVar[bool] = False
    nothing: ClassVar[str] = "no such weight requires grad"

    @abstractmethod
    def choose(self, model: nn.Module) -> None:
        """Leaves requires_grad with the weights that are trained, of those that had it.

        model: the copy that is trained, which is changed in place.
        """


@dataclass(frozen=True)
class Full(Trainable):
    """Trains every weight that requires a gradient."""

    def choose(self, model: nn.Module) -> None:
        """Leaves all as it is."""


@dataclass(frozen=True)
class LastLayer(Trainable):
    """Trains the last module that holds weights, in the order in which the model lists them.

    What goes into it is computed once for each record, unless a countermeasure changes inputs.
    """

    last_layer_alone: ClassVar[bool] = True

    def choose(self, model: nn.Module) -> None:
        _freeze_all_but(model, {id(w) for w in last_layer(model).parameters(recurse=False)})


@dataclass(frozen=True)
class Biases(Trainable):
    """Trains the biases alone: every weight whose name ends in ``bias``.

    Source: Zaken et al. 2022 (arXiv:2106.10199).
    """

    def choose(self, model: nn.Module) -> None:
        named = model.named_parameters()
        _freeze_all_but(model, {id(weight) for name, weight in named if name.endswith("bias")})


@dataclass(frozen=True)
class LoRA(Trainable):
    """Trains a low-rank change of every linear layer, merged into its weights afterwards.

    rank: of the change, 1 or more. A layer whose weight another module holds too stays as it is.
    Source: Hu et al. 2022 (arXiv:2106.09685).
    """

    rank: int = 4
    nothing: ClassVar[str] = "the model holds no nn.Linear whose weight is its own"

    def __post_init__(self) -> None:
        whole("rank", self.rank, low=1)

    def choose(self, model: nn.Module) -> None:
        _freeze_all_but(model, set())
        add_low_rank(model, self.rank)


BY_NAME: Mapping[str, Trainable] = MappingProxyType(
    {"full": Full(), "last": LastLayer(), "bias": Biases(), "lora": LoRA()}
)
"""The values by the names that the command line gives them."""


def choose_trainable(model: nn.Module, train: Trainable) -> None:
    """Leaves requires_grad with the weights that are trained.

    Errors: ConfigError where nothing would be trained.
    """
    train.choose(model)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ConfigError(f"There is nothing to train with train={train!r}: {train.nothing}.")


def _freeze_all_but(model: nn.Module, kept: set[int]) -> None:
    for weight in model.parameters():
        if id(weight) not in kept:
            weight.requires_grad_(False)
