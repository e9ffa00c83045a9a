"""What is done in training against attacks: the classic four, and what each is measured to do."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shieldnet.core.checks import finite, flag, positive, unwarned, whole
from shieldnet.core.errors import ConfigError
from shieldnet.training.losses import Criterion, Loss, scores_of
from shieldnet.training.private.gradients import Losses, Predict


class Countermeasure:
    """Changes how a model is trained; several act in the order in which they are given.

    private: whether it composes with DP-SGD: what it does to a record depends on no other record.
    keeps_inputs: whether it learns from inputs as they are and leaves the model alone, so that what
    goes into the last layer can be computed once. weight_decay: L2 on the weights, in every step.
    """

    private: ClassVar[bool] = True
    keeps_inputs: ClassVar[bool] = False
    weight_decay: float = 0.0

    def prepare(self, model: nn.Module) -> None:
        """Changes the copy of the model that is trained, before it is."""

    def move(self, inputs: Tensor, labels: Tensor, predict: Predict, loss: Loss) -> Tensor:
        """Returns the inputs to learn from. Row by row: no record sees another."""
        return inputs

    def criterion(self, loss: Loss) -> Loss:
        """Returns the loss of an output."""
        return loss

    def losses(self, losses: Losses, loss: Loss) -> Losses:
        """Returns the losses of inputs, of those so far."""
        return losses


@dataclass(frozen=True)
class Augment(Countermeasure):
    """Learns from changed copies of each record.

    shift: up to so many pixels, either way. flip: left to right, with chance 1/2. noise: deviation
    of noise on every number. transform: of your own, such as one of kornia's; it must treat every
    row by itself.
    Measured (benchmarks/RESULTS.md, countermeasures; three seeds): shifted images lower the AUC
    of membership (digits .63 to .55; canaries .99 to .79), noise on tables hardly does; inversion
    of answers stays as it was.
    """

    shift: int = 0
    flip: bool = False
    noise: float = 0.0
    transform: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        whole("shift", self.shift, low=0)
        flag("flip", self.flip)
        if finite("noise", self.noise) < 0:
            raise ConfigError(f"Expected noise >= 0, got {self.noise!r}.")
        if not (self.shift or self.flip or self.noise or self.transform):
            raise ConfigError("Augment() changes nothing: give shift, flip, noise or transform.")

    def move(self, inputs: Tensor, labels: Tensor, predict: Predict, loss: Loss) -> Tensor:
        if (self.shift or self.flip) and inputs.dim() < 3:
            raise ConfigError(
                f"Only images can be shifted or flipped; the inputs have shape "
                f"{tuple(inputs.shape)}. A table takes noise."
            )
        if self.flip:
            flipped = torch.rand(len(inputs)).to(inputs.device) < 0.5
            shape = (-1, *[1] * (inputs.dim() - 1))
            inputs = torch.where(flipped.reshape(shape), inputs.flip(-1), inputs)
        if self.shift:
            inputs = _shifted(inputs, self.shift)
        if self.noise:
            inputs = inputs + self.noise * torch.randn(inputs.shape).to(inputs)
        return inputs if self.transform is None else self.transform(inputs)


def _shifted(inputs: Tensor, max_shift: int) -> Tensor:
    """Moves every image by up to ``max_shift`` pixels; what comes in is 0."""
    count, height, width = len(inputs), inputs.shape[-2], inputs.shape[-1]
    planes = F.pad(inputs.reshape(count, -1, height, width), (max_shift,) * 4)
    offsets = (torch.rand(count, 2) * (2 * max_shift + 1)).long().to(inputs.device)
    rows = offsets[:, :1] + torch.arange(height, device=inputs.device)
    columns = offsets[:, 1:] + torch.arange(width, device=inputs.device)
    at = torch.arange(count, device=inputs.device)[:, None, None]
    shifted = planes.permute(0, 2, 3, 1)[at, rows[:, :, None], columns[:, None, :]]
    return shifted.permute(0, 3, 1, 2).reshape(inputs.shape)


@dataclass(frozen=True)
class WeightDecay(Countermeasure):
    """Pulls every weight toward 0 (L2).

    Measured (benchmarks/RESULTS.md, countermeasures; three seeds): lowers membership (digits, AUC
    of canaries .99 to .89); inversion of answers gets easier (.52 to .60).
    """

    rate: float = 1e-2
    keeps_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("rate", self.rate)

    @property
    def weight_decay(self) -> float:  # type: ignore[override]  # a field by another name
        """Returns the rate."""
        return self.rate


@dataclass(frozen=True)
class LabelSmoothing(Countermeasure):
    """Spreads a share of each label over all classes; a negative share sharpens it.

    Measured (benchmarks/RESULTS.md, countermeasures; three seeds): +.2 lowers inversion of answers
    (MNIST .35 to .24) and raises membership (AUC .74 to .82); -.05 the other way round, and costs
    accuracy. Of classes that are drawn Struppek 2024 says the like; here they are always drawn.
    """

    amount: float = 0.1
    keeps_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not -1 < finite("amount", self.amount) < 1 or self.amount == 0:
            raise ConfigError(f"Expected amount between -1 and 1, but not 0; got {self.amount!r}.")

    def criterion(self, loss: Loss) -> Loss:
        if not isinstance(loss, Criterion) or loss.outputs == "values":
            raise ConfigError(
                "LabelSmoothing needs the built-in loss of classes: leave loss= out, or smooth in "
                "your own."
            )
        return replace(loss, smoothing=self.amount)


@dataclass(frozen=True)
class Adversarial(Countermeasure):
    """Learns from the worst inputs within a linf ball (Madry 2018), found by Captum's PGD.

    epsilon: the ball's radius. steps of step_size (by default 2.5 epsilon / steps). low, high: what
    inputs lie between. trades: if given, learns from the input itself and keeps what it says near
    what it says of the worst input, with this weight (TRADES, Zhang 2019).
    Measured (benchmarks/RESULTS.md, countermeasures; three seeds): robust accuracy (digits .18 to
    .77), and accuracy where labels are wrong; inversion of answers gets easier (.52 to .59);
    membership stays as it was on images, though Song 2019 found it worse.
    """

    epsilon: float = 0.1
    steps: int = 7
    step_size: float | None = None
    low: float = 0.0
    high: float = 1.0
    trades: float | None = None

    def __post_init__(self) -> None:
        positive("epsilon", self.epsilon)
        whole("steps", self.steps, low=1)
        if self.step_size is not None:
            positive("step_size", self.step_size)
        if self.trades is not None:
            positive("trades", self.trades)
        if not self.low < self.high:
            raise ConfigError(f"Expected low < high, got {self.low} and {self.high}.")

    def move(self, inputs: Tensor, labels: Tensor, predict: Predict, loss: Loss) -> Tensor:
        if not inputs.is_floating_point():
            raise ConfigError("Adversarial needs inputs of real numbers, got whole ones.")
        if self.trades is None:
            return self.worst(inputs, predict, lambda output: loss(output, labels))
        with torch.no_grad():
            target = scores_of(predict(inputs)).softmax(-1)
        # At the input itself the divergence is flat: start beside it.
        start = inputs + 1e-3 * (2 * torch.rand(inputs.shape).to(inputs) - 1)
        worst = self.worst(inputs, predict, lambda output: _divergence(output, target), start)
        return torch.stack([inputs, worst], 1)

    def losses(self, losses: Losses, loss: Loss) -> Losses:
        if self.trades is None:
            return losses
        weight = self.trades

        def both(predict: Predict, pairs: Tensor, labels: Tensor) -> Tensor:
            inputs, worst = pairs.unbind(1)
            output = predict(inputs)
            target = scores_of(output).softmax(-1)
            return loss(output, labels) + weight * _divergence(predict(worst), target)

        return both

    def worst(
        self,
        inputs: Tensor,
        predict: Predict,
        loss: Callable[[object], Tensor],
        start: Tensor | None = None,
        *,
        easier: bool = False,
    ) -> Tensor:
        """Climbs the loss within the ball, or descends it.

        Shapes: inputs (records, ...); loss gives one number a record.
        """
        from captum.robust import PGD

        size = self.step_size or 2.5 * self.epsilon / self.steps
        offset = 0 if start is None else start - inputs

        def forward(perturbed: Tensor) -> Tensor:
            losses = loss(predict(perturbed + offset))
            return losses.unsqueeze(1)

        def summed(losses: Tensor, target: object) -> Tensor:
            return losses[:, 0]

        attack = PGD(forward, loss_func=summed, lower_bound=self.low, upper_bound=self.high)
        with torch.enable_grad(), unwarned("Input Tensor 0 did not already require"):
            worst: Tensor = attack.perturb(
                inputs.detach().clone(),
                radius=self.epsilon,
                step_size=size,
                step_num=self.steps,
                target=0,
                targeted=easier,
            )
        return worst.detach()


def _divergence(output: object, target: Tensor) -> Tensor:
    """Returns KL(target || softmax of the output) of every record."""
    log_p = scores_of(output).log_softmax(-1)
    return (torch.xlogy(target, target) - target * log_p).flatten(1).sum(1)
