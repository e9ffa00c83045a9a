"""What makes records see each other in training, or leaves their traces, and the fixes."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shieldnet.outputs.nested import leaves
from shieldnet.training.records import Records

ROWS = 5
"""Records that models are tried on: a number that few other axes have."""
_CHANNELS = 8  # of a group: of two numbers, normalizing leaves nothing but a sign


@dataclass(frozen=True)
class Hazard:
    """Names one thing that would break the proof.

    where: the module, weight or loss to blame. why: what was seen. fix: what to do about it.
    fixes: whether ``fix=True`` does it.
    """

    kind: str
    where: str
    why: str
    fix: str
    fixes: bool = False

    def __str__(self) -> str:
        accept = " (fix=True does it)" if self.fixes else ""
        return f"{self.kind} in {self.where}: {self.why}. {self.fix}{accept}"


def hazards_of(model: nn.Module, records: Records) -> tuple[Hazard, ...]:
    """Looks for whatever makes records see each other, or leaves their traces, in any way.

    model: in the modes in which it will be trained; it is as it was afterwards.
    """
    inputs, _ = stand_ins(records)
    model = copy.deepcopy(model)
    named = tuple(_batch_statistics(model))
    if named:  # these would be found twice, or hide others
        return named
    squeezed = tuple(_squeezed(model, inputs))
    if squeezed:
        return squeezed
    moving = tuple(_moving(model, inputs))  # first: what writes into weights may do so only once
    return (*_mixed_rows(model, inputs), *moving)


def fixed(model: nn.Module, seen: nn.Module, hazards: Sequence[Hazard]) -> nn.Module:
    """Returns a copy of the model with the offered fixes of batch statistics.

    seen: the model in which they were found, which knows what is frozen.
    """
    model = copy.deepcopy(model)
    for hazard in hazards:
        if not hazard.fixes:
            continue
        layer = model.get_submodule(hazard.where)
        if _is_frozen(seen.get_submodule(hazard.where)):
            layer.eval()
        elif isinstance(layer, _BatchNorm):
            holder, _, name = hazard.where.rpartition(".")
            setattr(model.get_submodule(holder), name, _group_norm(layer))
    return model


def stand_ins(records: Records) -> tuple[Tensor, Tensor]:
    """Makes a few rows of the shapes and types of records, with nothing of any record in them.

    Code of the user's may keep what it sees, so no record is ever shown to it: it runs on these, or
    on tensors without values.
    """
    generator = torch.Generator().manual_seed(0)

    def made(like: Tensor) -> Tensor:
        shape = (ROWS, *like.shape[1:])
        if like.is_floating_point():
            return torch.rand(shape, generator=generator).to(like)
        rows = torch.zeros(shape, dtype=like.dtype, device=like.device)
        rows[-1] = 1  # a word, a class or a number that is likely to be allowed
        return rows

    return made(records.inputs), made(records.labels)


def few_of(records: Records) -> tuple[Tensor, Tensor]:
    """Picks rows from all over the data."""
    rows = torch.arange(0, len(records), max(1, len(records) // ROWS))[:ROWS]
    return records.inputs[rows], records.labels[rows]  # in memory of their own, in order


def _batch_statistics(model: nn.Module) -> Iterator[Hazard]:
    for name, layer in model.named_modules():
        if not (isinstance(layer, _BatchNorm) and layer.training):
            continue
        if _is_frozen(layer):
            fix = "Keep it in evaluation mode: its statistics must come from public data"
        else:
            fix = (
                "Put nn.GroupNorm with its weights in its place, or freeze it and keep it in "
                "evaluation mode"
            )
        yield Hazard(
            "batch statistics",
            name,
            f"{type(layer).__name__} in training mode takes mean and variance over the records of "
            "a batch",
            fix,
            fixes=True,
        )


def _squeezed(model: nn.Module, inputs: Tensor) -> Iterator[Hazard]:
    """Looks whether one record gets what a record among others gets: a row of its own."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        some, single = model(inputs.clone()), model(inputs[:1].clone())
    shapes = [
        {path: tuple(leaf.shape) for path, leaf in leaves(output) if isinstance(leaf, Tensor)}
        for output in (some, single)
    ]
    for path, shape in shapes[0].items():
        got = shapes[1].get(path)
        if len(shape) and shape[0] == len(inputs) > 1 and got != (1, *shape[1:]):
            yield Hazard(
                "lost axis",
                "the model's own forward",
                f"for {len(inputs)} records it returns shape {shape}, and {got} for one: it drops "
                "the axis of the records where there is one",
                "Name the axis: squeeze(1) or flatten(1), not squeeze()",
            )


def _is_frozen(layer: nn.Module) -> bool:
    return not any(weight.requires_grad for weight in layer.parameters())


def _group_norm(layer: _BatchNorm) -> nn.GroupNorm:
    """Makes a GroupNorm with the scale and shift of a BatchNorm; its statistics are dropped."""
    channels = layer.num_features
    max_groups = max(1, min(32, channels // _CHANNELS))
    max_groups = 1 if isinstance(layer, nn.BatchNorm1d) else max_groups
    groups = next(count for count in range(max_groups, 0, -1) if channels % count == 0)
    made = nn.GroupNorm(groups, channels, eps=layer.eps, affine=layer.affine)
    if layer.affine:
        made.to(layer.weight.device, layer.weight.dtype)
        made.weight.data.copy_(layer.weight.data)
        made.bias.data.copy_(layer.bias.data)
        made.weight.requires_grad_(layer.weight.requires_grad)
        made.bias.requires_grad_(layer.bias.requires_grad)
    return made.train(layer.training)


@contextmanager
def same_draws(seed: int = 0) -> Iterator[None]:
    """Draws the same numbers every time, and leaves the global random states alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _mixed_rows(model: nn.Module, inputs: Tensor) -> Iterator[Hazard]:
    """Changes the first record and looks for the module in which others change with it."""
    changed = inputs.clone()
    changed[0] = 10 * inputs[0] + 1 if inputs.is_floating_point() else inputs[-1]
    before, again, after = (_seen(model, rows) for rows in (inputs, inputs, changed))
    if _differ(before[""][1], again[""][1], len(inputs)):
        yield Hazard(
            "kept state",
            "the model's own forward",
            "asked twice about the same records, with equal draws, it answers differently: it "
            "counts its calls, keeps what it saw, or draws with Python's random or numpy",
            "Compute from the record and the weights alone, and draw with torch",
        )
        return
    if not _differ(before[""][1], after[""][1], len(inputs)):
        return
    blamed = next(
        (
            name
            for name in before
            if name in after
            and _differ(before[name][1], after[name][1], len(inputs))
            and not _differ(before[name][0], after[name][0], len(inputs))
        ),
        None,
    )
    if blamed is not None:
        where = blamed or "the model's own forward"
        yield Hazard(
            "batch statistics",
            where,
            f"when one record changes, what {type(model.get_submodule(blamed)).__name__} says of "
            "the others changes too",
            "Compute from each record alone; statistics of a batch belong into constants, taken "
            "from public data",
        )


def _seen(model: nn.Module, inputs: Tensor) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Runs the model in training mode and keeps what went into and came out of every module."""
    seen: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    handles = []
    for name, module in model.named_modules():

        def keep(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            inside = [*_tensors(args), *_tensors(kwargs)]
            seen.setdefault(name, (inside, list(_tensors(output))))

        handles.append(module.register_forward_hook(keep, with_kwargs=True))
    try:
        with same_draws(), _kept(dict(model.named_buffers())), torch.no_grad():
            model(inputs.clone())
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _tensors(value: Any) -> Iterator[Tensor]:
    for _, leaf in leaves(value):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            yield leaf.detach().clone()


def _differ(before: list[Tensor], after: list[Tensor], rows: int) -> bool:
    """Says whether anything but the first record's share differs."""
    for old, new in zip(before, after, strict=False):
        if old.shape != new.shape or old.shape[0] % rows:
            continue
        start = len(old) // rows
        left, right = old[start:].double(), new[start:].double()
        if not torch.allclose(left, right, rtol=1e-4, atol=1e-5, equal_nan=True):
            return True
    return False


@contextmanager
def _kept(held: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Lends what the tensors hold, and puts it back into them afterwards."""
    kept = {name: tensor.detach().clone() for name, tensor in held.items()}
    try:
        yield kept
    finally:
        with torch.no_grad():
            for name, tensor in held.items():
                tensor.copy_(kept[name])


def _moving(model: nn.Module, inputs: Tensor) -> Iterator[Hazard]:
    """Looks for whatever a forward pass in training mode changes: published without noise."""
    buffers, weights = dict(model.named_buffers()), dict(model.named_parameters())
    held = {**buffers, **weights}
    with _kept(held) as kept:
        with same_draws(), torch.no_grad():
            model(inputs.clone())
        changed = [name for name in held if not torch.equal(held[name], kept[name])]
    for name in changed:
        yield Hazard(
            "moving buffer" if name in buffers else "moving weight",
            name,
            "a forward pass in training mode writes into it, and what it holds gets no noise",
            "Keep its module in evaluation mode, or use one that keeps no statistics (of an "
            "embedding: no max_norm)",
        )
