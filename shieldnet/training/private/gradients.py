"""Per-record gradients, each computed by a graph that sees one record, clipped and summed."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx import GraphModule, Node

from shieldnet.core.mapping import quiet_mapping
from shieldnet.training.private.capture import capture, is_random, with_draws_given
from shieldnet.training.private.gradient_parts import (
    Gradient,
    Part,
    Products,
    Rows,
    Whole,
    clipped_sum,
)

Predict = Callable[[Tensor], Any]
Losses = Callable[[Predict, Tensor, Tensor], Tensor]
"""Takes a model as a function, inputs and labels; returns (records,), one loss per record."""
Move = Callable[[Tensor, Tensor, Predict], Tensor]
"""Takes inputs, labels and a model as a function; returns the inputs to learn from, row by row."""
_ATEN = torch.ops.aten
_NUDGES = 16
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class RecordGradients:
    """Computes the clipped sum of a batch for the trainable weights of one model.

    The gradient of one record is captured as a graph (``capture``) whose arguments are the weights,
    the buffers and that record; ``vmap`` maps it over the records. Gradients of linear layers and
    embeddings stay factored, and their norms and sums are computed without expanding them.
    losses, move: the objective; they get views of one record only. views: number of copies of each
    record, whose gradients are averaged before clipping (De et al. 2022). example: inputs and
    labels, of which only shapes and dtypes are used. unseen: names of weights that the loss does
    not depend on. silent_rows: for each weight, the row that no record can move (the padding of an
    embedding), or None.
    Errors: NotCaptured if the computation cannot be captured.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Losses,
        clip: float,
        example: tuple[Tensor, Tensor],
        *,
        views: int = 1,
        move: Move | None = None,
    ) -> None:
        self.clip = clip
        self.named = {
            name: weight for name, weight in model.named_parameters() if weight.requires_grad
        }
        frozen = {
            name: weight for name, weight in model.named_parameters() if name not in self.named
        }
        self.held = {**frozen, **dict(model.named_buffers())}
        record_loss = _RecordLoss(model, losses, views, move)
        record = [column[0] for column in example]

        def gradient(*arguments: Any) -> list[Tensor]:  # tracer needs a plain signature
            return record_loss.gradient(*arguments)

        self.graph = capture(gradient, (self.named, self.held, *record))
        self.unseen = record_loss.unseen
        self.plans, self.silent_rows = _planned(self.graph)
        self._drawing: GraphModule | None = None
        self._with_draws = self.graph
        if is_random(self.graph):
            self._drawing, self._with_draws = with_draws_given(self.graph)

    @property
    def weights(self) -> list[nn.Parameter]:
        """Returns the trainable weights, in the order of the sums."""
        return list(self.named.values())

    @property
    def bytes_per_record(self) -> int:
        """Returns the size of one record's gradients, as they are stored."""
        return sum(plan.bytes for plans in self.plans for plan in plans)

    @property
    def terms(self) -> int:
        """Returns the largest number of products in one record's gradient of a weight."""
        return max(sum(plan.terms for plan in plans) for plans in self.plans)

    def zeros(self) -> list[Tensor]:
        """Returns zero sums, contiguous even if the weights are not."""
        return [
            torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
            for weight in self.weights
        ]

    def add(
        self, totals: Sequence[Tensor], inputs: Tensor, labels: Tensor
    ) -> tuple[list[Gradient], Tensor]:
        """Adds the clipped gradients of records to totals.

        Returns the unclipped gradients, and how many are no longer than the clip norm.
        Shapes: inputs, labels (records, ...); totals float64 in the weights' shapes.
        """
        gradients = self.each(inputs, labels)
        return gradients, clipped_sum(gradients, self.clip, totals)

    def difference(
        self, batch: Sequence[Gradient], inputs: Tensor, labels: Tensor, row: int
    ) -> float:
        """Compares a row's gradient in a batch with the gradient of that record by itself.

        batch: the gradients of inputs and labels. If the graph is random, the record is compared in
        a batch of two with equal draws. Returns the distance divided by the norm or the clip norm,
        whichever is larger. Where that is beyond ``tolerance``, the record by itself is also tried
        with numbers changed in their last digits, and the nearest counts: where two inputs of a
        maximum are nearly equal, their order decides the gradient.
        """
        record = inputs[row : row + 1], labels[row : row + 1]
        draws = self.draws(*record)
        if draws:
            pair = torch.tensor([row, (row + 1) % len(inputs)], device=inputs.device)
            batch, row = self.each(inputs[pair], labels[pair], draws), 0
        alone = self.alone(*record, draws)
        norm = sum(part.length() for gradient in alone for part in gradient.parts)
        distance = _distance(batch, row, alone)
        if not math.isfinite(norm):  # counts as 0, provided that it is not finite in the batch too
            return math.inf if math.isfinite(distance) else 0.0
        size = max(norm, self.clip)
        if self.tolerance * size < distance < math.inf:
            near = (_distance(batch, row, one) for one in self._nearly(*record, draws))
            distance = min((one for one in near if math.isfinite(one)), default=distance)
        return distance / size if math.isfinite(distance) else math.inf

    def _nearly(
        self, inputs: Tensor, labels: Tensor, draws: Sequence[Any]
    ) -> Iterator[list[Gradient]]:
        """Yields gradients of one record whose numbers are changed in their last digits.

        They are computed without a batch, so no other record takes part. Shapes: (1, ...).
        """
        generator = torch.Generator().manual_seed(0)
        for _ in range(_NUDGES):
            held = [_nudged(number, generator) for number in self._held]
            # Whole numbers may be indices, which have no last digits.
            nudged = torch.where(inputs == inputs.round(), inputs, _nudged(inputs, generator))
            with suppress(IndexError, RuntimeError):  # of an index that is made of a fraction
                yield self.alone(nudged, labels, draws, held)

    @property
    def tolerance(self) -> float:
        """Bounds the change of a gradient by another order of floating-point operations."""
        coarsest = max(torch.finfo(weight.dtype).eps for weight in self.weights)
        return max(1e-2, 16 * coarsest)

    def draws(self, inputs: Tensor, labels: Tensor) -> list[Any]:
        """Returns the random draws of one record's gradient. Shapes: inputs, labels (1, ...)."""
        if self._drawing is None:
            return []
        with torch.no_grad():
            drawn: list[Any] = self._drawing.forward(*self._held, inputs[0], labels[0])
        return drawn

    def each(self, inputs: Tensor, labels: Tensor, draws: Sequence[Any] = ()) -> list[Gradient]:
        """Returns every record's gradient of every weight.

        draws: used for all records, instead of separate draws.
        """
        graph = self._with_draws if draws else self.graph
        dims = (*[None] * len(self._held), 0, 0, *[None] * len(draws))
        # Not __call__, which would run global hooks that may store what they see.
        mapped = vmap(graph.forward, in_dims=dims, randomness="different")
        with torch.no_grad(), quiet_mapping():
            return self._gathered(mapped(*self._held, inputs, labels, *draws))

    def alone(
        self,
        inputs: Tensor,
        labels: Tensor,
        draws: Sequence[Any] = (),
        held: Sequence[Tensor] | None = None,
    ) -> list[Gradient]:
        """Returns the gradients of one record, without vmap. Shapes: (1, ...).

        held: weights and buffers in place of the model's own.
        """
        graph = self._with_draws if draws else self.graph
        held = self._held if held is None else held
        with torch.no_grad():
            outputs = graph.forward(*held, inputs[0], labels[0], *draws)
        return self._gathered([output.unsqueeze(0) for output in outputs])

    @property
    def _held(self) -> list[Tensor]:
        return [*self.named.values(), *self.held.values()]

    def _gathered(self, outputs: Sequence[Tensor]) -> list[Gradient]:
        waiting = iter(outputs)
        gradients = []
        for plans, weight in zip(self.plans, self.weights, strict=True):
            parts = [plan.part([next(waiting) for _ in plan.outputs], weight) for plan in plans]
            gradients.append(Gradient(_joined(parts)))
        return gradients


class _RecordLoss:
    """Computes the gradient of one record with a copy of the model, for tracing.

    unseen: names of weights that the loss did not depend on in the last call.
    """

    def __init__(self, model: nn.Module, losses: Losses, views: int, move: Move | None) -> None:
        self.model = copy.deepcopy(model)  # tracing may leave fake tensors in it
        self.losses, self.views, self.move = losses, views, move
        self.unseen: tuple[str, ...] = ()

    def gradient(
        self, weights: dict[str, Tensor], held: dict[str, Tensor], x: Tensor, y: Tensor
    ) -> list[Tensor]:
        """Returns the gradient of every weight. Shapes: x, y of one record, no batch axis."""
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}

        def predict(inputs: Tensor) -> Any:
            return functional_call(self.model, (leaves, held), (inputs,))

        inputs, labels = x.unsqueeze(0), y.unsqueeze(0)
        if self.views > 1:
            inputs = inputs.repeat_interleave(self.views, 0)
            labels = labels.repeat_interleave(self.views, 0)
        if self.move is not None:
            inputs = self.move(inputs, labels, predict)
        loss = self.losses(predict, inputs, labels).mean()
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        by_name = dict(zip(leaves, slopes, strict=True))
        self.unseen = tuple(name for name, slope in by_name.items() if slope is None)
        return [
            torch.zeros_like(leaves[name]) if slope is None else slope
            for name, slope in by_name.items()
        ]


@dataclass(frozen=True)
class _Plan:
    """Describes how a part is read from the outputs of a graph, and its size."""

    outputs: tuple[Node, ...]
    unused: int | None = None

    @property
    def bytes(self) -> int:
        return sum(_value(node).numel() * _value(node).element_size() for node in self.outputs)

    @property
    def terms(self) -> int:
        if len(self.outputs) == 1:
            return 1
        first = _value(self.outputs[0])  # a factor of products, or the indices of rows
        return int(first.shape[0] if self.unused is None else first.numel())

    def part(self, outputs: Sequence[Tensor], weight: Tensor) -> Part:
        if len(outputs) == 1:
            return Whole(outputs[0])
        first, second = outputs
        if self.unused is None:
            return Products(first, second)
        columns = weight.shape[1]
        first, second = first.reshape(len(first), -1), second.reshape(len(second), -1, columns)
        return Rows(first, second, self.unused)


def _distance(batch: Sequence[Gradient], row: int, alone: Sequence[Gradient]) -> float:
    """Bounds the distance between a row's gradient in a batch and the only one in another."""
    return sum(
        part.distance(row, single)
        for gradient, other in zip(batch, alone, strict=True)
        for part, single in zip(gradient.parts, other.parts, strict=True)
    )


def _nudged(numbers: Tensor, generator: torch.Generator) -> Tensor:
    """Changes numbers by a few units in their last digits. Other types stay as they are."""
    if numbers.dtype not in _FLOATS or numbers.layout is not torch.strided:
        return numbers
    signs = torch.randint(-4, 5, numbers.shape, generator=generator).to(numbers)
    return numbers.detach() * (1 + signs * torch.finfo(numbers.dtype).eps)


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Joins parts of one kind, so that inner products between them are included."""
    if any(isinstance(part, Whole) for part in parts):
        (whole,) = parts  # a sum of anything else is planned as a whole
        return (whole,)
    joined: list[Part] = []
    products = [part for part in parts if isinstance(part, Products)]
    looked_up = [part for part in parts if isinstance(part, Rows)]
    if products:
        left = torch.cat([part.left for part in products], 1)
        joined.append(Products(left, torch.cat([part.right for part in products], 1)))
    if looked_up:
        places = torch.cat([part.places for part in looked_up], 1)
        gradients = torch.cat([part.used() for part in looked_up], 1)
        unused = looked_up[0].unused if len(looked_up) == 1 else -1
        joined.append(Rows(places, gradients, unused))
    return tuple(joined)


def _planned(graph: GraphModule) -> tuple[list[list[_Plan]], list[int | None]]:
    """Replaces outputs that are products or lookups by their factors, if these are smaller.

    Returns the plan of every weight, and for each the row that no record can move.
    """
    output = next(node for node in graph.graph.nodes if node.op == "output")
    plans: list[list[_Plan]] = []
    silent: list[int | None] = []
    for gradient in output.args[0]:
        parts = _parts(gradient, graph)
        unused = {plan.unused for plan in parts}
        row = unused.pop() if len(unused) == 1 else None
        silent.append(None if row is None or row < 0 else row)
        whole = _Plan((gradient,))
        is_less = bool(parts) and sum(plan.bytes for plan in parts) < whole.bytes
        plans.append(parts if is_less else [whole])
    flat = [node for gradient in plans for plan in gradient for node in plan.outputs]
    output.args = (flat,)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return plans, silent


def _parts(node: Node, graph: GraphModule) -> list[_Plan]:
    """Reads a gradient as a sum of products and lookups; returns [] if it is neither."""
    flipped = False
    while node.target is _ATEN.t.default:
        node, flipped = node.args[0], not flipped  # type: ignore[assignment]  # a tensor
    if node.target is _ATEN.add.Tensor and not node.kwargs and not flipped:
        sides = [_parts(side, graph) for side in node.args if isinstance(side, Node)]
        return [plan for side in sides for plan in side] if len(sides) == 2 and all(sides) else []
    if node.target is _ATEN.mm.default:
        first, right = node.args
        with graph.graph.inserting_before(node):
            left = graph.graph.call_function(_ATEN.t.default, (first,))
        left.meta["val"] = _value(first).t()  # type: ignore[arg-type]  # a tensor
        return [_Plan((right, left) if flipped else (left, right))]  # type: ignore[arg-type]
    if node.target is _ATEN.embedding_dense_backward.default and not flipped:
        slopes, places, _, padding, by_frequency = node.args
        if not by_frequency:
            return [_Plan((places, slopes), unused=int(padding))]  # type: ignore[arg-type]
    return []


def _value(node: Node) -> Tensor:
    value: Tensor = node.meta["val"]
    return value
