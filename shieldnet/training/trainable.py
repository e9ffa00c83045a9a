"""Choices of the weights to train: all, the last layer, the biases, or a low-rank update."""

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
    """Chooses the weights of a model to train: ``finetune(model, data, train=LoRA(4))``.

    last_layer_alone: whether only the last layer is trained; its input is then computed once per
    record, unless a countermeasure changes it. nothing: reason why there may be nothing to train,
    for the error.
    """

    last_layer_alone: ClassVar[bool] = False
    nothing: ClassVar[str] = "no such weight requires grad"

    @abstractmethod
    def choose(self, model: nn.Module) -> None:
        """Clears requires_grad of all weights that are not trained.

        model: the copy to train, which is changed in place.
        """


@dataclass(frozen=True)
class Full(Trainable):
    """Trains every weight that requires a gradient."""

    def choose(self, model: nn.Module) -> None:
        """Changes nothing."""


@dataclass(frozen=True)
class LastLayer(Trainable):
    """Trains only the last module with weights, in the order of ``model.modules()``.

    Its input is computed once per record, unless a countermeasure changes the inputs.
    """

    last_layer_alone: ClassVar[bool] = True

    def choose(self, model: nn.Module) -> None:
        _freeze_all_but(model, {id(w) for w in last_layer(model).parameters(recurse=False)})


@dataclass(frozen=True)
class Biases(Trainable):
    """Trains only the biases: every weight whose name ends in ``bias``.

    Source: Zaken et al. 2022 (arXiv:2106.10199).
    """

    def choose(self, model: nn.Module) -> None:
        named = model.named_parameters()
        _freeze_all_but(model, {id(weight) for name, weight in named if name.endswith("bias")})


@dataclass(frozen=True)
class LoRA(Trainable):
    """Trains a low-rank update of every linear layer, merged into its weights afterwards.

    rank: rank of the update, 1 or more. Layers with tied weights are not changed.
    Source: Hu et al. 2022 (arXiv:2106.09685).
    """

    rank: int = 4
    nothing: ClassVar[str] = "the model has no nn.Linear with untied weights"

    def __post_init__(self) -> None:
        whole("rank", self.rank, low=1)

    def choose(self, model: nn.Module) -> None:
        _freeze_all_but(model, set())
        add_low_rank(model, self.rank)


BY_NAME: Mapping[str, Trainable] = MappingProxyType(
    {"full": Full(), "last": LastLayer(), "bias": Biases(), "lora": LoRA()}
)
"""Values by their names on the command line."""


def choose_trainable(model: nn.Module, train: Trainable) -> None:
    """Clears requires_grad of all weights that are not trained.

    Errors: ConfigError if nothing would be trained.
    """
    train.choose(model)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ConfigError(f"There is nothing to train with train={train!r}: {train.nothing}.")


def _freeze_all_but(model: nn.Module, kept: set[int]) -> None:
    for weight in model.parameters():
        if id(weight) not in kept:
            weight.requires_grad_(False)
