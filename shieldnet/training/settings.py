"""The settings of a training that are about neither data nor countermeasures."""

from dataclasses import dataclass

from shieldnet.core.checks import choice, finite, flag, positive, whole
from shieldnet.core.errors import ConfigError
from shieldnet.training.trainable import Trainable

OPTIMIZERS = ("sgd", "adam")


@dataclass(frozen=True)
class FinetuneSettings:
    """Holds the settings of ``finetune`` under their own names, checked."""

    epochs: float
    batch_size: int | None
    learning_rate: float
    momentum: float | None
    optimizer: str
    train: Trainable
    outputs: str
    axis: int | None
    fix: bool
    seed: int | None

    def __post_init__(self) -> None:
        positive("epochs", self.epochs)
        positive("learning_rate", self.learning_rate)
        choice("optimizer", self.optimizer, OPTIMIZERS)
        if not isinstance(self.train, Trainable):
            raise ConfigError(
                "Expected train as a value such as sn.trainable.LoRA(4) or "
                f"sn.trainable.LastLayer(), got {self.train!r}."
            )
        if self.momentum is not None:
            if not 0 <= finite("momentum", self.momentum) < 1:
                raise ConfigError(f"Expected momentum from 0 to below 1, got {self.momentum!r}.")
            if self.optimizer != "sgd":
                raise ConfigError(f"The optimizer {self.optimizer} has no momentum: leave it out.")
        flag("fix", self.fix)
        if self.batch_size is not None:
            whole("batch_size", self.batch_size, low=1)
        if self.seed is not None:
            whole("seed", self.seed, low=0, high=2**63 - 1)
