"""Recipe: trains many models of one architecture at once, on stacked weights."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from shieldnet.core.checks import choice, finite, positive, renamed, whole
from shieldnet.core.errors import ConfigError, DataError
from shieldnet.core.mapping import quiet_mapping
from shieldnet.data.packing import packed, several_of
from shieldnet.data.tensors import as_tensor
from shieldnet.training.losses import scores_of
from shieldnet.training.several_inputs import taking_one, taking_several

_MAX_TOGETHER = 50_000
"""Largest number of weights for which stacking models is faster (3 times) than a loop."""


@renamed(lr="learning_rate", batch="batch_size")
@dataclass(frozen=True)
class Recipe:
    """Describes how a model is trained, so that many can be trained at once, each on its own rows.

    make_model: function that returns a fresh model. epochs, learning_rate, batch_size, momentum,
    weight_decay: as in torch. optimizer: ``"sgd"`` or ``"adam"`` (decoupled weight decay).
    outputs: what the model returns: ``"logits"``, ``"probabilities"``, or the ``"values"`` of a
    regression, whose loss is the mean squared error. together: whether to train
    models as one by ``torch.func.vmap``; by default those without convolutions and with at most
    50,000 weights, since others are as fast one by one on a CPU, and only if vmap takes them.

    A recipe is also a ``train`` function: ``recipe((inputs, labels), seed)`` trains one model. All
    batches are full; the last one of an epoch is filled with rows of the next order. The same seed
    gives the same model; the global seed is not touched.
    """

    make_model: Callable[[], nn.Module]
    epochs: int = 50
    learning_rate: float = 0.05
    batch_size: int = 32
    momentum: float = 0.9
    weight_decay: float = 0.0
    optimizer: str = "sgd"
    outputs: str = "logits"
    together: bool | None = None

    def __post_init__(self) -> None:
        if not callable(self.make_model) or isinstance(self.make_model, nn.Module):
            raise ConfigError(
                f"Expected make_model to be a function that returns a fresh nn.Module, "
                f"got {type(self.make_model).__name__}."
            )
        whole("epochs", self.epochs, low=1)
        whole("batch_size", self.batch_size, low=1)
        positive("learning_rate", self.learning_rate)
        for name in ("momentum", "weight_decay"):
            if finite(name, getattr(self, name)) < 0:
                raise ConfigError(f"Expected {name} >= 0, got {getattr(self, name)!r}.")
        choice("optimizer", self.optimizer, ("sgd", "adam"))
        choice("outputs", self.outputs, ("logits", "probabilities", "values"))

    def __call__(self, data: tuple[Any, Tensor], seed: int) -> nn.Module:
        """Trains one model on (inputs, labels) and returns it in evaluation mode.

        Several inputs are a dict or a tuple of tensors, as for ``finetune``.
        """
        if (several := several_of(data)) is not None:
            return self._on_several(*several, seed)
        inputs, labels = data
        (model,) = self.models(inputs, labels, [torch.arange(len(inputs))], [seed])
        return model

    def _on_several(self, inputs: Any, labels: Any, seed: int) -> nn.Module:
        rows, packing = packed(inputs, "records")
        by_rows = replace(self, make_model=lambda: taking_one(packing, self.make_model()))
        model = by_rows((rows, as_tensor(labels, "records")), seed)
        taking_several(model)
        return model

    def models(
        self, inputs: Tensor, labels: Tensor, rows: Sequence[Tensor], seeds: Sequence[int]
    ) -> list[nn.Module]:
        """Trains one model per element of ``rows``. Shapes: rows, each (n,) row indices."""
        if any(len(own_rows) == 0 for own_rows in rows):
            raise DataError("Expected at least one row to train each model on, got none.")
        fresh = [self._fresh(seed) for seed in seeds]
        if self._as_one(fresh[0]) and self._can_stack(fresh, inputs, labels):
            _train(self, fresh, inputs, labels, rows, seeds)
        else:
            for model, chosen, seed in zip(fresh, rows, seeds, strict=True):
                _train(self, [model], inputs, labels, [chosen], [seed])
        return [model.eval() for model in fresh]

    def _fresh(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make_model()
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"Expected make_model to return an nn.Module, got {type(model).__name__}."
            )
        return model.train()

    def _as_one(self, model: nn.Module) -> bool:
        if self.together is not None:
            return self.together
        convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        is_small = sum(weight.numel() for weight in model.parameters()) <= _MAX_TOGETHER
        return is_small and not any(isinstance(layer, convolutions) for layer in model.modules())

    def _can_stack(self, models: list[nn.Module], inputs: Tensor, labels: Tensor) -> bool:
        """Returns whether vmap takes the models, which may branch on what they read.

        With ``together=True`` it has to: its error is the user's.
        """
        if self.together or len(models) == 1:
            return True
        # A whole batch: one row alone has no batch statistics.
        batch = torch.arange(min(self.batch_size, len(inputs))).expand(len(models), -1)
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                _Stack(models).loss(self, inputs[batch], labels[batch])
        except Exception:  # torch's or the model's own, which training one by one would show
            return False
        return True


def _train(
    recipe: Recipe,
    models: list[nn.Module],
    inputs: Tensor,
    labels: Tensor,
    rows: Sequence[Tensor],
    seeds: Sequence[int],
) -> None:
    """Trains the models in place, stacked if there are several."""
    stack = _Single(models[0]) if len(models) == 1 else _Stack(models)
    weights = [weight for weight in stack.weights if weight.requires_grad]
    optimizer = _optimizer(recipe, stack.weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])  # for dropout, which uses the global generator
        for batch in _batches(rows, recipe.batch_size, recipe.epochs, seeds):
            loss = stack.loss(recipe, inputs[batch], labels[batch])
            gradients = torch.autograd.grad(loss, weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                # vmap's gradients have other strides, which a fused step ignores.
                weight.grad = gradient.contiguous()
            optimizer.step()
    for weight in weights:
        weight.grad = None
    stack.finish()


class _Single:
    """Runs a single model. Shapes: inputs (1, rows, ...)."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.weights = model, list(model.parameters())

    def loss(self, recipe: Recipe, inputs: Tensor, labels: Tensor) -> Tensor:
        return _loss(recipe, self.model(inputs[0]), labels[0])

    def finish(self) -> None:
        """Does nothing: the model's own weights were trained."""


class _Stack:
    """Runs many models at once on stacked weights. Shapes: inputs (models, rows, ...)."""

    def __init__(self, models: list[nn.Module]) -> None:
        self.models, self.skeleton = models, copy.deepcopy(models[0]).to("meta")
        self.parameters, self.buffers = torch.func.stack_module_state(models)
        self.weights = list(self.parameters.values())

    def loss(self, recipe: Recipe, inputs: Tensor, labels: Tensor) -> Tensor:
        """Returns the sum of the models' losses, each on its own rows."""

        def of_model(
            weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor, y: Tensor
        ) -> Tensor:
            held = {**weights, **buffers}
            return _loss(recipe, torch.func.functional_call(self.skeleton, held, (x,)), y)

        losses = torch.vmap(of_model, randomness="different")
        with quiet_mapping():
            total: Tensor = losses(self.parameters, self.buffers, inputs, labels).sum()
        return total

    def finish(self) -> None:
        """Copies the stacked weights and buffers back into the models."""
        with torch.no_grad():
            for number, model in enumerate(self.models):
                state = model.state_dict(keep_vars=True)
                for name, values in (*self.parameters.items(), *self.buffers.items()):
                    state[name].copy_(values[number])


def _optimizer(recipe: Recipe, weights: Sequence[Tensor]) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adam":
        return torch.optim.AdamW(weights, lr=rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(
        weights, lr=rate, momentum=recipe.momentum, weight_decay=decay, fused=True
    )


def _batches(
    rows: Sequence[Tensor], batch: int, epochs: int, seeds: Sequence[int]
) -> Iterator[Tensor]:
    """Yields (models, batch) row indices; every model visits its own rows in its own order.

    An epoch has enough batches for the largest set of rows; smaller sets start over.
    """
    longest = max(len(own_rows) for own_rows in rows)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    size = min(batch, longest)
    steps = -(-longest // size)
    for _ in range(epochs):
        order = torch.stack(
            [
                _filled(own_rows, steps * size, generator)
                for own_rows, generator in zip(rows, generators, strict=True)
            ]
        )
        yield from order.split(size, dim=1)


def _filled(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    times = -(-count // len(rows))
    orders = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(times)]
    return torch.cat(orders)[:count]


def _loss(recipe: Recipe, output: Any, labels: Tensor) -> Tensor:
    scores = scores_of(output).reshape(len(labels), -1)
    if recipe.outputs == "values":
        targets = labels.reshape(len(labels), -1).to(scores.dtype)
        if targets.shape != scores.shape:
            raise ConfigError(
                f"Expected a model of {targets.shape[1]} outputs for targets of as many, got "
                f"{scores.shape[1]}."
            )
        return nn.functional.mse_loss(scores, targets)
    if recipe.outputs == "probabilities":
        return nn.functional.nll_loss(scores.clamp_min(1e-12).log(), labels)
    if scores.shape[-1] == 1:  # one binary logit
        return nn.functional.binary_cross_entropy_with_logits(scores[:, 0], labels.to(scores.dtype))
    return nn.functional.cross_entropy(scores, labels)
