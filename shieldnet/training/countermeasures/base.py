"""Countermeasures in training: the four classic ones, each with its measured effect."""

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
    """Changes how a model is trained; several are applied in the given order.

    private: whether it composes with DP-SGD, because its effect on a record depends on no other
    record. keeps_inputs: whether it changes neither inputs nor model, so that the input of the last
    layer can be computed once. weight_decay: L2 penalty on the weights in every step.
    """

    private: ClassVar[bool] = True
    keeps_inputs: ClassVar[bool] = False
    weight_decay: float = 0.0

    def prepare(self, model: nn.Module) -> None:
        """Changes the copy of the model in place before training."""

    def move(self, inputs: Tensor, labels: Tensor, predict: Predict, loss: Loss) -> Tensor:
        """Returns the inputs to learn from, computed row by row: no record sees another."""
        return inputs

    def criterion(self, loss: Loss) -> Loss:
        """Returns the loss of an output."""
        return loss

    def losses(self, losses: Losses, loss: Loss) -> Losses:
        """Returns the function that computes the losses of inputs, given the previous one."""
        return losses


@dataclass(frozen=True)
class Augment(Countermeasure):
    """Learns from augmented copies of each record.

    shift: largest shift of an image, in pixels. flip: whether to flip images horizontally with
    probability 1/2. noise: standard deviation of Gaussian noise on every number. transform: a
    custom function, such as one of kornia's; it must treat every row independently.
    Measured (benchmarks/RESULTS.md, countermeasures; three seeds): shifted images lower the AUC of
    membership (digits 0.63 to 0.55; canaries 0.99 to 0.79), noise on tables hardly does; inversion
    of answers is unchanged.
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
            raise ConfigError("Augment() changes nothing: pass shift, flip, noise or transform.")

    def move(self, inputs: Tensor, labels: Tensor, predict: Predict, loss: Loss) -> Tensor:
        if (self.shift or self.flip) and inputs.dim() < 3:
            raise ConfigError(
                f"Only images can be shifted or flipped; the inputs have shape "
                f"{tuple(inputs.shape)}. For tables pass noise."
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
    """Shifts every image by up to ``max_shift`` pixels, padded with 0."""
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
    """Shrinks every weight toward 0 (L2). rate: the weight decay of the optimizer, above 0.

    Measured (benchmarks/RESULTS.md, countermeasures; three seeds): lowers membership (digits, AUC
    of canaries 0.99 to 0.89); inversion of answers gets easier (0.52 to 0.60).
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
    """Spreads a share of each label evenly over all classes.

    amount: the share, in (-1, 1) and not 0; a negative one sharpens labels.
    Measured (benchmarks/RESULTS.md, countermeasures; three seeds): +0.2 lowers inversion of answers
    (MNIST 0.35 to 0.24) and raises membership (AUC 0.74 to 0.82); -0.05 does the opposite and costs
    accuracy. Struppek 2024 reports the same for class inversion, which always succeeded here.
    """

    amount: float = 0.1
    keeps_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not -1 < finite("amount", self.amount) < 1 or self.amount == 0:
            raise ConfigError(f"Expected amount between -1 and 1, but not 0; got {self.amount!r}.")

    def criterion(self, loss: Loss) -> Loss:
        if not isinstance(loss, Criterion) or loss.outputs == "values":
            raise ConfigError(
                "LabelSmoothing needs the built-in classification loss: omit loss=, or smooth the "
                "labels in your own loss."
            )
        return replace(loss, smoothing=self.amount)


@dataclass(frozen=True)
class Adversarial(Countermeasure):
    """Learns from adversarial inputs in an L-infinity ball (Madry 2018), found by Captum's PGD.

    epsilon: radius of the ball. steps: number of PGD steps. step_size: their size, by default
    2.5 epsilon / steps. low, high: range of valid inputs. trades: if given, learns from the input
    itself and penalizes, with this weight, the divergence between the outputs for the input and the
    adversarial input (TRADES, Zhang 2019).
    Measured (benchmarks/RESULTS.md, countermeasures; three seeds): raises robust accuracy (digits
    0.18 to 0.77), and accuracy if labels are wrong; inversion of answers gets easier (0.52 to
    0.59); membership is unchanged on images, although Song 2019 found it worse.
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
            raise ConfigError(f"Adversarial needs floating-point inputs, got {inputs.dtype}.")
        if self.trades is None:
            return self.worst(inputs, predict, lambda output: loss(output, labels))
        with torch.no_grad():
            target = scores_of(predict(inputs)).softmax(-1)
        # The gradient of the divergence is 0 at the input itself, so start next to it.
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
        """Maximizes the loss within the ball, or minimizes it if ``easier``.

        Shapes: inputs (records, ...); loss returns (records,).
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
    """Returns KL(target || softmax(output)) of every record."""
    log_p = scores_of(output).log_softmax(-1)
    return (torch.xlogy(target, target) - target * log_p).flatten(1).sum(1)
