"""The training objective: the loss, as modified by countermeasures."""

from dataclasses import dataclass

from torch import Tensor

from shieldnet.training.countermeasures.base import Countermeasure
from shieldnet.training.losses import Loss
from shieldnet.training.private.gradients import Losses, Predict


@dataclass(frozen=True)
class Objective:
    """Defines the loss per record that training minimizes, with countermeasures applied.

    loss: of a model's output, after the countermeasures' ``criterion``.
    """

    loss: Loss
    countermeasures: tuple[Countermeasure, ...] = ()

    def move(self, inputs: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        """Returns the inputs to learn from."""
        for countermeasure in self.countermeasures:
            inputs = countermeasure.move(inputs, labels, predict, self.loss)
        return inputs

    @property
    def losses(self) -> Losses:
        """Returns the function that computes one loss per record."""

        def plain(predict: Predict, inputs: Tensor, labels: Tensor) -> Tensor:
            return self.loss(predict(inputs), labels)

        losses: Losses = plain
        for countermeasure in self.countermeasures:
            losses = countermeasure.losses(losses, self.loss)
        return losses
