"""What is learned from records: the loss, and what countermeasures make of it."""

from dataclasses import dataclass

from torch import Tensor

from shieldnet.training.countermeasures.base import Countermeasure
from shieldnet.training.losses import Loss
from shieldnet.training.private.gradients import Losses, Predict


@dataclass(frozen=True)
class Objective:
    """Says what a step lowers: a loss of inputs that countermeasures change, one for every record.

    loss: of a model's output, as the countermeasures' ``criterion`` leave it.
    """

    loss: Loss
    countermeasures: tuple[Countermeasure, ...] = ()

    def move(self, inputs: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        """Returns what to learn from, of inputs."""
        for countermeasure in self.countermeasures:
            inputs = countermeasure.move(inputs, labels, predict, self.loss)
        return inputs

    @property
    def losses(self) -> Losses:
        """Returns one loss for every record."""

        def plain(predict: Predict, inputs: Tensor, labels: Tensor) -> Tensor:
            return self.loss(predict(inputs), labels)

        losses: Losses = plain
        for countermeasure in self.countermeasures:
            losses = countermeasure.losses(losses, self.loss)
        return losses
