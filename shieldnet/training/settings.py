"""Settings of a training other than data and countermeasures."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from shieldnet.core.checks import choice, finite, flag, positive, whole
from shieldnet.core.errors import ConfigError
from shieldnet.training.trainable import Trainable

OPTIMIZERS = ("sgd", "adam")
_MOMENTUM = 0.9


@dataclass(frozen=True)
class Optimization:
    """Holds the optimizer's settings, and makes the optimizer.

    optimizer: ``sgd``, or ``adam`` with decoupled weight decay. learning_rate: above 0. momentum:
    for sgd, in [0, 1); by default 0.9.
    """

    optimizer: str
    learning_rate: float
    momentum: float | None

    def __post_init__(self) -> None:
        positive("learning_rate", self.learning_rate)
        choice("optimizer", self.optimizer, OPTIMIZERS)
        if self.momentum is not None:
            if not 0 <= finite("momentum", self.momentum) < 1:
                raise ConfigError(f"Expected momentum from 0 to below 1, got {self.momentum!r}.")
            if self.optimizer != "sgd":
                raise ConfigError(f"The optimizer {self.optimizer} has no momentum: omit it.")

    def __call__(
        self, weights: Sequence[nn.Parameter], weight_decay: float
    ) -> torch.optim.Optimizer:
        """Makes the optimizer for the given weights."""
        rate = self.learning_rate
        if self.optimizer == "adam":
            return torch.optim.AdamW(weights, lr=rate, weight_decay=weight_decay)
        momentum = _MOMENTUM if self.momentum is None else self.momentum
        return torch.optim.SGD(weights, lr=rate, momentum=momentum, weight_decay=weight_decay)


@dataclass(frozen=True)
class FinetuneSettings:
    """Holds validated settings of ``finetune``, under the same names."""

    epochs: float
    batch_size: int | None
    optimization: Optimization
    train: Trainable
    outputs: str
    axis: int | None
    fix: bool
    seed: int | None

    def __post_init__(self) -> None:
        positive("epochs", self.epochs)
        if not isinstance(self.train, Trainable):
            raise ConfigError(
                "Expected train to be a value such as sn.trainable.LoRA(4) or "
                f"sn.trainable.LastLayer(), got {self.train!r}."
            )
        flag("fix", self.fix)
        if self.batch_size is not None:
            whole("batch_size", self.batch_size, low=1)
        if self.seed is not None:
            whole("seed", self.seed, low=0, high=2**63 - 1)
