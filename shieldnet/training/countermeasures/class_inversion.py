"""Defenses against class inversion from the literature: heuristics, to be measured, not believed.

None has a guarantee; none is part of a preset. What each does here stands in
benchmarks/RESULTS.md (countermeasures).
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shieldnet.core.checks import positive, whole
from shieldnet.core.errors import ConfigError
from shieldnet.training.countermeasures.base import Adversarial, Countermeasure
from shieldnet.training.layers import weight_holders
from shieldnet.training.losses import Loss
from shieldnet.training.private.gradients import Losses, Predict


@dataclass(frozen=True)
class AntiAdversarial(Countermeasure):
    """Learns from inputs changed toward their class within a linf ball: training made easier.

    It leaves the loss steep beside the data, so that gradients mislead who draws a class by them.
    Queries do not follow gradients: classes are drawn all the same, and accuracy falls (digits, .91
    to .79; benchmarks/RESULTS.md). epsilon, steps, low, high: as of ``Adversarial``.
    """

    epsilon: float = 0.1
    steps: int = 3
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        self._search()  # checks the settings

    def move(self, inputs: Tensor, labels: Tensor, predict: Predict, loss: Loss) -> Tensor:
        return self._search().worst(
            inputs, predict, lambda output: loss(output, labels), easier=True
        )

    def _search(self) -> Adversarial:
        return Adversarial(self.epsilon, self.steps, low=self.low, high=self.high)


@dataclass(frozen=True)
class TransferFreeze(Countermeasure):
    """Keeps the first layers as they came from public data and trains the rest (TL-DMI).

    layers: how many modules that hold weights are kept, in the order in which the model lists them.
    Without pretraining on public data it means nothing.
    Source: Ho et al. 2024 (arXiv:2405.05588).
    """

    layers: int = 1

    def __post_init__(self) -> None:
        whole("layers", self.layers, low=1)

    def prepare(self, model: nn.Module) -> None:
        holders = weight_holders(model)
        if self.layers >= len(holders):
            raise ConfigError(
                f"Expected layers below {len(holders)}, the model's modules with weights, got "
                f"{self.layers}: nothing would be trained."
            )
        for module in holders[: self.layers]:
            for weight in module.parameters(recurse=False):
                weight.requires_grad_(False)


@dataclass(frozen=True)
class BiDO(Countermeasure):
    """Makes hidden layers depend less on the input and more on the label, by HSIC.

    layers: names of the hidden modules. to_input, to_label: weights of the two dependencies.
    It compares records of a batch with each other, so it does not compose with DP-SGD. With these
    weights nothing was measured to change (benchmarks/RESULTS.md); the paper tunes them by hand.
    Source: Peng et al. 2022 (arXiv:2206.05483); HSIC: Gretton et al. 2005.
    """

    layers: tuple[str, ...]
    to_input: float = 0.05
    to_label: float = 0.5
    private: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _names(self.layers)
        positive("to_input", self.to_input)
        positive("to_label", self.to_label)

    def losses(self, losses: Losses, loss: Loss) -> Losses:
        def with_dependence(predict: Predict, inputs: Tensor, labels: Tensor) -> Tensor:
            with _hidden(predict, self.layers) as seen:
                of_output = loss(predict(inputs), labels)
            of_input = _kernel(inputs)
            of_label = (labels[:, None] == labels).to(of_input)
            total = of_output.new_zeros(())
            for layer in seen:
                of_layer = _kernel(layer)
                total = total + self.to_input * _hsic(of_layer, of_input)
                total = total - self.to_label * _hsic(of_layer, of_label)
            return of_output + total

        return with_dependence


@dataclass(frozen=True)
class MID(Countermeasure):
    """Puts noise on a hidden layer in training and charges for its size: a bottleneck.

    layer: name of the hidden module. beta: what a nat costs. The noise is a standard normal, so
    that the layer's squared norm over 2 is the divergence from no information at all; the answer
    later has no noise. Measured (benchmarks/RESULTS.md): a regularizer of membership (digits, AUC
    of canaries .99 to .91), nothing against inversion.
    Source: Wang, Zhang, Jia 2021 (arXiv:2009.05241), with a fixed variance.
    """

    layer: str
    beta: float = 1e-2

    def __post_init__(self) -> None:
        _names((self.layer,))
        positive("beta", self.beta)

    private: ClassVar[bool] = False

    def losses(self, losses: Losses, loss: Loss) -> Losses:
        def through_noise(predict: Predict, inputs: Tensor, labels: Tensor) -> Tensor:
            with _hidden(predict, (self.layer,), lambda h: h + torch.randn_like(h)) as seen:
                of_output = loss(predict(inputs), labels)
            spent: Tensor = seen[0].flatten(1).square().sum(1) / 2
            return of_output + self.beta * spent

        return through_noise


def _names(layers: Sequence[str]) -> None:
    named = all(isinstance(name, str) and name for name in layers)
    if not layers or isinstance(layers, str) or not named:
        raise ConfigError(f"Expected the names of hidden modules, got {layers!r}.")


@contextmanager
def _hidden(
    predict: Predict, names: Sequence[str], change: Callable[[Tensor], Tensor] | None = None
) -> Any:
    """Lists the outputs of the named modules, and passes on what they are changed to."""
    assert isinstance(predict, nn.Module)  # noqa: S101  # private is False: always the model itself
    modules = dict(predict.named_modules())
    missing = [name for name in names if name not in modules]
    if missing:
        raise ConfigError(
            f"The model has no module {missing[0]!r}. It has: {', '.join(filter(None, modules))}."
        )
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        outputs.append(output)
        return output if change is None else change(output)

    handles = [modules[name].register_forward_hook(keep) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _kernel(rows: Tensor) -> Tensor:
    """Compares rows by a Gaussian kernel as wide as their mean distance."""
    flat = rows.flatten(1)
    squares: Tensor = torch.cdist(flat, flat).square()
    return torch.exp(-squares / (2 * squares.mean().detach().clamp_min(1e-12)))


def _hsic(kernel: Tensor, other: Tensor) -> Tensor:
    """Returns the Hilbert-Schmidt independence criterion of two kernels."""
    count = len(kernel)
    centered: Tensor = kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
    return torch.sum(centered * other) / max(1, count - 1) ** 2
