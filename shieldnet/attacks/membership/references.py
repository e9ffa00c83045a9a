"""Reference networks in place of shadows, where it is not known how the model was trained."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from shieldnet.attacks.adversary.features import Scale
from shieldnet.training.recipe import Recipe

_MAX_SGD_FEATURES = 64  # up to which plain gradient steps learn the most; beyond, they diverge
MAX_ROWS = 5000  # of each set
MAX_FEATURES = 512  # features that reference models read at most
_MAX_STEPS = 1500
_AT_ONCE = 4096  # rows narrowed at once
_FAR = 10.0  # deviations: no input of a reference model lies further out


class _Standardized(nn.Module):
    """Scales inputs as the pool's are spread. Shapes: (rows, ...) -> (rows, features)."""

    def __init__(self, center: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", center.clone())
        self.register_buffer("deviation", deviation.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        scaled = (inputs.flatten(1).float() - self.center) / self.deviation  # type: ignore[operator]  # buffers
        return scaled.clamp(-_FAR, _FAR)


def reference(scale: Scale, classes: int, probabilities: bool) -> nn.Module:
    """Makes a small network that stands for the target."""
    layers: list[nn.Module] = [
        _Standardized(scale.center, scale.deviation),
        nn.Linear(len(scale.center), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    ]
    return nn.Sequential(*layers, *([nn.Softmax(-1)] if probabilities else []))


def reference_recipe(
    inputs: Tensor, classes: int, probabilities: bool, rows: Sequence[Tensor]
) -> Recipe:
    """Says how the small networks are trained; rows: for every network, those that train it."""
    steps = -(-max(map(len, rows)) // 32)
    is_narrow = inputs[0].numel() <= _MAX_SGD_FEATURES
    return Recipe(
        partial(reference, Scale.of(inputs), classes, probabilities),
        epochs=max(5, min(50, _MAX_STEPS // steps)),
        outputs="probabilities" if probabilities else "logits",
        optimizer="sgd" if is_narrow else "adam",
        learning_rate=0.05 if is_narrow else 1e-3,
    )


class Narrowed(nn.Module):
    """Makes few random sums of many features, which keep how far records lie apart.

    Shapes: (rows, ...) -> (rows, ``MAX_FEATURES``) float32.
    Source: Johnson and Lindenstrauss 1984.
    """

    def __init__(self, scaled: _Standardized, weights: Tensor) -> None:
        super().__init__()
        self.scaled, self.weights = scaled, weights

    @classmethod
    def of(cls, inputs: Tensor) -> "Narrowed":
        """Takes the units of the inputs. Shapes: inputs (rows, ...)."""
        scale, generator = Scale.of(inputs), torch.Generator().manual_seed(0)
        weights = torch.randn(len(scale.center), MAX_FEATURES, generator=generator)
        weights = weights / MAX_FEATURES**0.5
        return cls(_Standardized(scale.center, scale.deviation), weights)

    def forward(self, inputs: Tensor) -> Tensor:
        parts = [self.scaled(part) @ self.weights for part in inputs.split(_AT_ONCE)]
        return torch.cat(parts)
