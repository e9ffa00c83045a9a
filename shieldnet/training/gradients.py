"""What each record asks of the weights, clipped and summed: three ways to the same sum."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shieldnet._validate import quietly, unwarned

Predict = Callable[[Tensor], Any]
Losses = Callable[[Predict, Tensor, Tensor], Tensor]
"""Takes a model as a function, inputs and labels; returns (records,), one loss for each."""
Move = Callable[[Tensor, Tensor, Predict], Tensor]
"""Takes inputs, labels and a model as a function; returns what to learn from, row by row."""

_KNOWN = ("Full backward hook is firing", "There is a performance drop")
"""What torch says of Opacus's hooks on a first layer, where they are right, and of layers that it
maps one by one, which preflight times."""
_ROWS_ARE_NOT_RECORDS = "a layer was called with another number of rows than there are records"
_AT_ONCE = 2**24  # numbers
_GHOST = "opacus.grad_sample.grad_sample_module_fast_gradient_clipping"


def clip_factors(norms: Tensor, clip: float) -> Tensor:
    """Returns what a gradient of each norm is multiplied by: never more than ``clip`` is left.

    Shapes: norms (records,) finite -> (records,). The margin covers the rounding of the sums.
    Source: Abadi et al. 2016, Algorithm 1 (arXiv:1607.00133).
    """
    return (clip * (1 - 1e-6) / norms.clamp_min(1e-30)).clamp_max(1.0)


def clipped_sum(each: Sequence[Tensor], clip: float) -> list[Tensor]:
    """Clips each record's gradient to an L2 norm of ``clip``, over all weights, and sums them.

    Shapes: each of (records, *weight) -> one sum of the shape of every weight.
    Guarantee: one record moves the sum by at most ``clip``, whatever it is: a gradient that is not
    finite, or too large to have a finite norm, counts as 0. To report it would betray its record.
    """
    norms = torch.stack([one.flatten(1).norm(dim=1) for one in each]).norm(dim=0)
    sound = torch.isfinite(norms)
    if not sound.all():
        each, norms = [one[sound] for one in each], norms[sound]
    factors = clip_factors(norms, clip)
    return [torch.einsum("n,n...->...", factors.to(one.dtype), one) for one in each]


class Gradients(ABC):
    """Computes the clipped sum of a batch, for the trainable weights of one model, in place.

    views: copies of each record that follow one another in a batch; their gradients are averaged
    before they are clipped (De et al. 2022). The model is used until ``release``.
    """

    name: ClassVar[str]
    takes_views: ClassVar[bool] = True

    def __init__(self, model: nn.Module, losses: Losses, clip: float, views: int = 1) -> None:
        self.model, self.losses, self.clip, self.views = model, losses, clip, views
        self.weights = [one for one in model.parameters() if one.requires_grad]

    @abstractmethod
    def __call__(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        """Returns the sum of clipped gradients. Shapes: (records * views, ...) each."""

    def viewed(self, rows: Tensor) -> Tensor:
        """Returns each row as often as there are views. Shapes: (n, ...) -> (n * views, ...)."""
        return rows.repeat_interleave(self.views, 0) if self.views > 1 else rows

    def prepared(self, inputs: Tensor, labels: Tensor, move: Move) -> tuple[Tensor, Tensor]:
        """Returns what is learned from views of the records, and their labels."""
        inputs, labels = self.viewed(inputs), self.viewed(labels)
        with self.quiet() as predict:
            return move(inputs, labels, predict), labels

    def quiet(self) -> AbstractContextManager[Predict]:
        """Lends the model for other uses in between, such as to look for adversarial examples."""
        return nullcontext(self.model)

    def release(self) -> None:
        """Takes everything off the model that was put on it."""
        return


class Recorded(Gradients):
    """Holds every record's gradient at once."""

    @property
    def held(self) -> int:
        """Returns the bytes of one record's gradients, of all its views."""
        return 4 * self.views * sum(one.numel() for one in self.weights)

    def __call__(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        each = self.each(inputs, labels)
        if any(len(one) * self.views != len(inputs) for one in each):
            raise RuntimeError(_ROWS_ARE_NOT_RECORDS)
        return clipped_sum(each, self.clip)

    @abstractmethod
    def each(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        """Returns (records, *weight) gradients for every trainable weight."""


class Hooks(Recorded):
    """Asks Opacus's hooks on every layer: quick for layers with few weights.

    functorch: whether torch.func computes within each layer, instead of Opacus's own formulas.
    """

    name = "hooks"
    functorch: ClassVar[bool] = False

    def __init__(self, model: nn.Module, losses: Losses, clip: float, views: int = 1) -> None:
        super().__init__(model, losses, clip, views)
        # Not strict: what it would refuse, and more, was looked for by preflight.
        self.hooked = quietly("opacus.grad_sample").GradSampleModule(
            model, loss_reduction="sum", strict=False, force_functorch=self.functorch
        )

    def each(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        self.hooked.zero_grad()
        with unwarned(*_KNOWN):
            self.losses(self.hooked, inputs, labels).sum().backward()
        found = [
            torch.zeros(len(inputs), *one.shape).to(one)
            if one.grad_sample is None  # type: ignore[attr-defined]  # Opacus put it there
            else one.grad_sample  # type: ignore[attr-defined]
            for one in self.weights
        ]
        self.hooked.zero_grad()
        if self.views == 1:
            return found
        return [one.unflatten(0, (-1, self.views)).mean(1) for one in found]

    def quiet(self) -> AbstractContextManager[Predict]:
        return _hooks_off(self.hooked, self.model)

    def release(self) -> None:
        self.hooked.to_standard_module()


class Functorch(Hooks):
    """Asks Opacus's hooks, with torch.func inside every layer."""

    name = "functorch"
    functorch = True


class Functional(Recorded):
    """Differentiates the whole model for each record by itself, by ``torch.func``.

    Right for whatever can be mapped over records: weights that are shared, tied or used outside of
    their layer. Each record is a batch of its own, with its views.
    """

    name = "functional"

    def __init__(self, model: nn.Module, losses: Losses, clip: float, views: int = 1) -> None:
        super().__init__(model, losses, clip, views)
        self.names = [name for name, one in model.named_parameters() if one.requires_grad]

        def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            def predict(given: Tensor) -> Any:
                return torch.func.functional_call(model, weights, (given,))

            return losses(predict, x, y).mean()

        self.map = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness="different")

    def each(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        weights = {name: one.detach() for name, one in zip(self.names, self.weights, strict=True)}
        groups = (-1, self.views)
        with unwarned(*_KNOWN):
            found = self.map(weights, inputs.unflatten(0, groups), labels.unflatten(0, groups))
        return [found[name] for name in self.names]


class Ghost(Gradients):
    """Computes norms alone, by Opacus, then one more backward pass with each loss scaled.

    Quick and small for layers with many weights. Source: Li et al. 2022; Bu et al. 2022.
    """

    name = "ghost"
    takes_views = False

    def __init__(self, model: nn.Module, losses: Losses, clip: float, views: int = 1) -> None:
        super().__init__(model, losses, clip, views)
        kind = quietly(_GHOST).GradSampleModuleFastGradientClipping
        self.hooked = kind(model, loss_reduction="sum", strict=False, max_grad_norm=clip)
        # Of this one alone: Opacus's formula for sequences cancels, and clips too little.
        self.hooked.NORM_SAMPLERS = {**kind.NORM_SAMPLERS, nn.Linear: _linear_norms}

    def norms(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Returns the norm of every record's gradient. Shapes: (records, ...) -> (records,)."""
        _, norms = self._measured(inputs, labels)
        self._forget()
        return norms

    def _measured(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.hooked.zero_grad()
        losses = self.losses(self.hooked, inputs, labels)
        with unwarned(*_KNOWN):
            losses.sum().backward(retain_graph=True)
        norms: Tensor = self.hooked.get_norm_sample()
        if len(norms) != len(inputs):
            raise RuntimeError(_ROWS_ARE_NOT_RECORDS)
        return losses, norms

    def __call__(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        losses, norms = self._measured(inputs, labels)
        sound = torch.isfinite(norms)
        if not sound.all():
            if not sound.any():
                self._forget()
                return [torch.zeros_like(one) for one in self.weights]
            return self(inputs[sound], labels[sound])
        self._forget()
        with self.quiet(), unwarned(*_KNOWN):
            total = losses @ clip_factors(norms, self.clip).to(losses.dtype)
            return list(torch.autograd.grad(total, self.weights, materialize_grads=True))

    def _forget(self) -> None:
        self.hooked.zero_grad()
        for one in self.weights:
            one.grad = None

    def quiet(self) -> AbstractContextManager[Predict]:
        return _hooks_off(self.hooked, self.model)

    def release(self) -> None:
        self.hooked.to_standard_module()


WAYS: dict[str, type[Gradients]] = {one.name: one for one in (Hooks, Ghost, Functional, Functorch)}
"""In the order in which they are tried."""


def _linear_norms(
    layer: nn.Linear, activations: Sequence[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Returns the norm of every record's gradient of a linear layer, by weight.

    Over positions the gradients themselves are added up, some records at a time: products of
    products would cancel where inputs have an offset, and a norm of nothing is not clipped.
    """
    given = activations[0].to(backprops.dtype)
    found: dict[Tensor, Tensor] = {}
    rows = len(backprops)
    if backprops.dim() == 2:
        if layer.weight.requires_grad:
            found[layer.weight] = backprops.norm(dim=1) * given.norm(dim=1)
        if layer.bias is not None and layer.bias.requires_grad:
            found[layer.bias] = backprops.norm(dim=1)
        return found
    back, given = (one.reshape(rows, -1, one.shape[-1]) for one in (backprops, given))
    if layer.weight.requires_grad:
        some = max(1, _AT_ONCE // layer.weight.numel())
        parts = zip(back.split(some), given.split(some), strict=True)
        found[layer.weight] = torch.cat(
            [torch.einsum("nik,nij->nkj", *part).flatten(1).norm(dim=1) for part in parts]
        )
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = back.sum(1).norm(dim=1)
    return found


@contextmanager
def _hooks_off(hooked: Any, model: nn.Module) -> Iterator[Predict]:
    hooked.disable_hooks()
    try:
        yield model
    finally:
        hooked.enable_hooks()
