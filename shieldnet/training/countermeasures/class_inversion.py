"""Countermeasures against class inversion from the literature.

They are heuristics: none has a guarantee or is part of a preset. Their measured effects are in
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
    """Learns from inputs that are moved toward their class within an L-infinity ball.

    The loss becomes steep next to the data, which misleads class inversion by gradients. Inversion
    by queries uses no gradients and still succeeds, and accuracy falls (digits, 0.91 to 0.79;
    benchmarks/RESULTS.md). epsilon, steps, low, high: as in ``Adversarial``.
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
    """Freezes the first layers, pretrained on public data, and trains the rest (TL-DMI).

    layers: number of modules with weights to freeze, in the order of ``model.modules()``.
    Without pretraining on public data it is meaningless.
    Source: Ho et al. 2024 (arXiv:2405.05588).
    """

    layers: int = 1

    def __post_init__(self) -> None:
        whole("layers", self.layers, low=1)

    def prepare(self, model: nn.Module) -> None:
        holders = weight_holders(model)
        if self.layers >= len(holders):
            raise ConfigError(
                f"Expected layers below {len(holders)}, the number of modules with weights, got "
                f"{self.layers}: nothing would be trained."
            )
        for module in holders[: self.layers]:
            for weight in module.parameters(recurse=False):
                weight.requires_grad_(False)


@dataclass(frozen=True)
class BiDO(Countermeasure):
    """Reduces the dependence of hidden layers on the input and raises that on the label, by HSIC.

    layers: names of the hidden modules. to_input, to_label: weights of the two dependencies.
    It compares the records of a batch, so it does not compose with DP-SGD. With the default weights
    no effect was measured (benchmarks/RESULTS.md); the paper tunes them by hand.
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
    """Adds noise to a hidden layer in training and penalizes its norm (information bottleneck).

    layer: name of the hidden module. beta: penalty per nat. The noise is standard normal, so the
    layer's squared norm / 2 is the divergence from an output without information; answers after
    training have no noise. Measured (benchmarks/RESULTS.md): lowers membership (digits, AUC of
    canaries 0.99 to 0.91), but not inversion.
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
        raise ConfigError(f"Expected names of hidden modules, got {layers!r}.")


@contextmanager
def _hidden(
    predict: Predict, names: Sequence[str], change: Callable[[Tensor], Tensor] | None = None
) -> Any:
    """Records the outputs of the named modules, and replaces them by ``change`` of them."""
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
    """Returns the Gaussian kernel matrix of rows, with the mean distance as its width."""
    flat = rows.flatten(1)
    squares: Tensor = torch.cdist(flat, flat).square()
    return torch.exp(-squares / (2 * squares.mean().detach().clamp_min(1e-12)))


def _hsic(kernel: Tensor, other: Tensor) -> Tensor:
    """Returns the Hilbert-Schmidt independence criterion of two kernels."""
    count = len(kernel)
    centered: Tensor = kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
    return torch.sum(centered * other) / max(1, count - 1) ** 2
