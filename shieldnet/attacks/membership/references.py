"""Reference networks in place of shadows, where it is not known how the model was trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from shieldnet.attacks.adversary.scales import Scale
from shieldnet.attacks.answers import Behind, in_batches
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable
from shieldnet.shield.module import Shield
from shieldnet.training.recipe import Recipe

_MAX_SGD_FEATURES = 64  # up to which plain gradient steps learn the most; beyond, they diverge
MAX_ROWS = 5000  # of each set
MAX_FEATURES = 512  # features that reference models read at most
_MAX_STEPS = 1500
_MAX_ACCURACY_GAP = 0.1  # to the target, of reference models on the records that trained them
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


class _InOwnUnits(nn.Module):
    """Gives a regression's answers in the unit of its targets. Shapes: -> (rows, outputs)."""

    def __init__(self, standardized: nn.Module, center: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.standardized = standardized
        self.register_buffer("center", center.clone())
        self.register_buffer("deviation", deviation.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        answers: Tensor = self.standardized(inputs)
        return answers * self.deviation + self.center  # type: ignore[operator]  # buffers


@dataclass(frozen=True)
class _OfStandardTargets(Recipe):
    """Trains regressors on targets in the unit of the pool, and gives answers in their own."""

    targets: Scale | None = None

    def models(
        self, inputs: Tensor, labels: Tensor, rows: Sequence[Tensor], seeds: Sequence[int]
    ) -> list[nn.Module]:
        """Trains one model per element of ``rows``."""
        scale = self.targets
        assert scale is not None  # noqa: S101  # value_recipe gives it
        trained = super().models(inputs, scale.apply(labels.reshape(len(labels), -1)), rows, seeds)
        return [_InOwnUnits(model, scale.center, scale.deviation).eval() for model in trained]


def value_recipe(inputs: Tensor, targets: Tensor, rows: Sequence[Tensor]) -> Recipe:
    """Says how small regressors are trained; rows: for every one, those that train it.

    Shapes: targets (rows,) or (rows, outputs), of the whole pool, whose unit they are learned in.
    """
    scale = Scale.of(targets.reshape(len(targets), -1))
    plan = reference_recipe(inputs, len(scale.center), False, rows)
    return _OfStandardTargets(
        plan.make_model,
        epochs=plan.epochs,
        outputs="values",
        optimizer=plan.optimizer,
        learning_rate=plan.learning_rate,
        targets=scale,
    )


def require_learned(shield: Shield, members: Examples, scores: Tensor, trained_on: Tensor) -> None:
    """Raises NotApplicable where reference models know their records less well than the target.

    Shapes: scores (shadows, rows, classes or outputs), trained_on (shadows, rows).
    """
    target = in_batches(Behind(shield), members.inputs).unsqueeze(0)
    if members.has_targets:
        truth = members.require_targets(target.shape[-1])
        unit = (truth - truth.mean(0)).square().mean(0)
        unit = unit.where(unit > 0, 1.0)
        own, shadows = (1 - ((part - truth).square() / unit).mean(-1) for part in (target, scores))
        words = "reach an R2 of"
    else:
        labels = members.require_labels(scores.shape[-1])
        own, shadows = (part.argmax(-1).eq(labels).double() for part in (target, scores))
        words = "are right on"
    known, reached = float(own.mean()), float(shadows[trained_on].mean())
    if reached < known - _MAX_ACCURACY_GAP:
        raise NotApplicable(
            f"reference models {words} {reached:.2f} of the records that trained them, the "
            f"target on {known:.2f}: they do not stand for it. Pass train=..."
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
