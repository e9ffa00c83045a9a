"""Many models of one kind trained as one: the same layers, a stack of weights."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shieldnet.core.checks import choice, finite, positive, renamed, whole
from shieldnet.core.errors import ConfigError, DataError

_MAX_STACKED_WEIGHTS = 50_000
"""Weights up to which a stack of models is quicker than one after the other, by 3 times."""


@renamed(lr="learning_rate", batch="batch_size")
@dataclass(frozen=True)
class Recipe:
    """Says how a model is trained, so that many can be trained at once, each on its own rows.

    make_model: makes a fresh model that gives logits, or probabilities (then say so in
    ``outputs``). optimizer: ``"sgd"`` or ``"adam"`` (decoupled weight decay). together: whether
    models are trained as one by ``torch.func.vmap``; by default those of up to 50,000 weights
    without convolutions: others are as quick one after the other on a CPU.

    A recipe is a ``train`` function as well: ``recipe((inputs, labels), seed)`` trains one model.
    An epoch takes as many full batches as the rows need; the last is filled with rows of the next
    order. The same seed gives the same model; the global seed is left alone.
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
                f"Expected make_model as a function that returns a fresh nn.Module, "
                f"got {type(self.make_model).__name__}."
            )
        whole("epochs", self.epochs, low=1)
        whole("batch_size", self.batch_size, low=1)
        positive("learning_rate", self.learning_rate)
        for name in ("momentum", "weight_decay"):
            if finite(name, getattr(self, name)) < 0:
                raise ConfigError(f"Expected {name} >= 0, got {getattr(self, name)!r}.")
        choice("optimizer", self.optimizer, ("sgd", "adam"))
        choice("outputs", self.outputs, ("logits", "probabilities"))

    def __call__(self, data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
        """Trains one model on (inputs, labels) and returns it in evaluation mode."""
        inputs, labels = data
        (model,) = self.models(inputs, labels, [torch.arange(len(inputs))], [seed])
        return model

    def models(
        self, inputs: Tensor, labels: Tensor, rows: Sequence[Tensor], seeds: Sequence[int]
    ) -> list[nn.Module]:
        """Trains a model on each choice of rows. Shapes: rows, each (n,) indices of inputs."""
        if any(len(one) == 0 for one in rows):
            raise DataError("A model cannot be trained on no rows.")
        fresh = [self._fresh(seed) for seed in seeds]
        if self._as_one(fresh[0]):
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
        is_small = sum(one.numel() for one in model.parameters()) <= _MAX_STACKED_WEIGHTS
        return is_small and not any(isinstance(part, convolutions) for part in model.modules())


def _train(
    recipe: Recipe,
    models: list[nn.Module],
    inputs: Tensor,
    labels: Tensor,
    rows: Sequence[Tensor],
    seeds: Sequence[int],
) -> None:
    """Trains the models, as one where there are several; their weights are changed in place."""
    alone = len(models) == 1
    if alone:
        parameters = dict(models[0].named_parameters())
    else:
        parameters, buffers = torch.func.stack_module_state(models)
        skeleton = copy.deepcopy(models[0]).to("meta")

    def losses(picked: Tensor) -> Tensor:
        if alone:
            return _loss(recipe, models[0](inputs[picked[0]]), labels[picked[0]])

        def one(
            weights: Mapping[str, Tensor], state: Mapping[str, Tensor], x: Tensor, y: Tensor
        ) -> Tensor:
            return _loss(
                recipe, torch.func.functional_call(skeleton, {**weights, **state}, (x,)), y
            )

        each = torch.vmap(one, randomness="different")
        return each(parameters, buffers, inputs[picked], labels[picked]).sum()

    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.AdamW}
    settings = {"momentum": recipe.momentum} if recipe.optimizer == "sgd" else {}
    optimizer = kinds[recipe.optimizer](
        parameters.values(),
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=True,
        **settings,
    )
    leaves = [one for one in parameters.values() if one.requires_grad]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])  # of dropout, which asks the global generator
        for picked in _batches(rows, recipe.batch_size, recipe.epochs, seeds):
            gradients = torch.autograd.grad(losses(picked), leaves)
            for leaf, gradient in zip(leaves, gradients, strict=True):
                # vmap's gradients are strided otherwise, and a fused step ignores strides.
                leaf.grad = gradient.contiguous()
            optimizer.step()
    for leaf in leaves:
        leaf.grad = None
    if not alone:
        _unstack(models, {**parameters, **buffers})


def _batches(
    rows: Sequence[Tensor], batch: int, epochs: int, seeds: Sequence[int]
) -> Iterator[Tensor]:
    """Yields (models, batch) row numbers: every model goes through its own rows in its own order.

    An epoch has as many batches as the most rows need; who has fewer rows begins them anew.
    """
    most = max(len(one) for one in rows)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    size = min(batch, most)
    steps = -(-most // size)
    for _ in range(epochs):
        order = torch.stack(
            [_filled(one, steps * size, by) for one, by in zip(rows, generators, strict=True)]
        )
        yield from order.split(size, dim=1)


def _filled(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    times = -(-count // len(rows))
    orders = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(times)]
    return torch.cat(orders)[:count]


def _loss(recipe: Recipe, output: Tensor, labels: Tensor) -> Tensor:
    scores = output.reshape(len(labels), -1)
    if recipe.outputs == "probabilities":
        return nn.functional.nll_loss(scores.clamp_min(1e-12).log(), labels)
    if scores.shape[-1] == 1:  # one yes or no
        return nn.functional.binary_cross_entropy_with_logits(scores[:, 0], labels.to(scores.dtype))
    return nn.functional.cross_entropy(scores, labels)


def _unstack(models: Sequence[nn.Module], stacked: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for place, model in enumerate(models):
            state = model.state_dict(keep_vars=True)
            for name, values in stacked.items():
                state[name].copy_(values[place])
