"""Hazards: what lets records influence each other or leave traces in training, and the fixes."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shieldnet.files.group_norms import Norm
from shieldnet.outputs.nested import leaves
from shieldnet.training.records import Records

ROWS = 5
"""Number of records that models are tried on, a size that few other axes have."""
_REQUESTS = re.compile(
    r"\s*\(Could this error message be improved\?.*?\)\.?"
    r"|,?\s*[Pp]lease (?:report|file) .*?PyTorch\.?"
)


@dataclass(frozen=True)
class Hazard:
    """Describes one thing that would break the guarantee.

    where: the module, weight or loss that causes it. why: what was observed. fix: what to do.
    fixes: what ``fix=True`` does about it, "" if nothing. done: the same, once it was done.
    """

    kind: str
    where: str
    why: str
    fix: str
    fixes: str = ""
    done: str = ""

    def __str__(self) -> str:
        accept = f" (fix=True {self.fixes})" if self.fixes else ""
        return f"{self.kind} in {self.where}: {self.why}. {self.fix}{accept}"


def hazards_of(model: nn.Module, records: Records) -> tuple[Hazard, ...]:
    """Finds whatever lets records influence each other, or leaves traces of them.

    model: in the modes in which it will be trained; it is unchanged afterwards.
    """
    inputs, _ = stand_ins(records)
    model = copy.deepcopy(model)
    named = tuple(_batch_statistics(model))
    if named:  # they would be found twice, or hide others
        return named
    try:
        squeezed = tuple(_squeezed(model, inputs))
        if squeezed:
            return squeezed
        moving = tuple(_moving(model, inputs))  # first: a write into weights may happen only once
        return (*_mixed_rows(model, inputs, records.is_whole), *moving)
    except Exception as failed:  # user code can raise anything
        return (untried(failed),)


def reason_of(failed: Exception) -> str:
    """Returns the first line of an error, without torch's requests to report it."""
    return without_requests(next(iter(str(failed).splitlines()), ""))


def without_requests(text: str) -> str:
    """Removes torch's requests to report an error, which are addressed to torch's users."""
    return _REQUESTS.sub("", text)


def untried(failed: Exception) -> Hazard:
    """Describes a failure of the user's code on values that preflight makes."""
    return Hazard(
        "values out of range",
        "the model's forward",
        "preflight tries values that the data does not have, since no code may see a record: from "
        "0 to 1, and changed by factors of 10 and more, and the model failed on them with "
        f"{type(failed).__name__}: {reason_of(failed):.200}",
        "If columns of real numbers hold whole ones, such as ids for an embedding, pass these as "
        "an input of their own, which is tried with 0 and 1 alone: ({'ids': rows[:, :6].long(), "
        "'numbers': rows[:, 6:]}, labels), for a model with forward(self, ids, numbers)",
    )


def fixed(model: nn.Module, seen: nn.Module, hazards: Sequence[Hazard]) -> nn.Module:
    """Returns a copy of the model with the fixes for batch statistics applied.

    seen: the model in which they were found, which shows what is frozen.
    """
    model = copy.deepcopy(model)
    for hazard in hazards:
        if not hazard.fixes:
            continue
        layer = model.get_submodule(hazard.where)
        if _is_frozen(seen.get_submodule(hazard.where)):
            layer.eval()
        elif isinstance(layer, _BatchNorm):
            Norm.replacing(layer).put(model, hazard.where)
    return model


def stand_ins(records: Records) -> tuple[Tensor, Tensor]:
    """Makes rows with the shapes and dtypes of records that contain no data of any record.

    User code may store what it sees, so it never sees a record: it runs on these rows, or on
    tensors without values.
    """
    generator = torch.Generator().manual_seed(0)

    def made(like: Tensor, is_whole: Tensor) -> Tensor:
        real = torch.rand((ROWS, *like.shape[1:]), generator=generator).to(like)
        whole = torch.zeros_like(real)
        whole[-1] = 1  # a token, a class or a number that is likely to be valid
        return torch.where(is_whole, whole, real)

    labels = records.labels
    return made(records.inputs, records.is_whole), made(
        labels, torch.tensor(not labels.is_floating_point(), device=labels.device)
    )


def few_of(records: Records) -> tuple[Tensor, Tensor]:
    """Picks rows spread over the data."""
    rows = torch.arange(0, len(records), max(1, len(records) // ROWS))[:ROWS]
    return records.inputs[rows], records.labels[rows]  # copies, in order


def _batch_statistics(model: nn.Module) -> Iterator[Hazard]:
    for name, layer in model.named_modules():
        if not (isinstance(layer, _BatchNorm) and layer.training):
            continue
        kind, norm = type(layer).__name__, Norm.replacing(layer)
        if _is_frozen(layer):
            fix = "Keep it in evaluation mode, with statistics from public data"
            fixes, done = (
                "keeps it in evaluation mode",
                f"kept layer {name} ({kind}) in evaluation mode",
            )
        else:
            fix = f"Replace it by nn.{norm}, or freeze it and keep it in evaluation mode"
            fixes, done = f"puts {norm} in its place", f"replaced layer {name} ({kind}) by {norm}"
        yield Hazard(
            "batch statistics",
            name,
            f"{kind} in training mode computes mean and variance over the records of a batch",
            fix,
            fixes,
            done,
        )


def _squeezed(model: nn.Module, inputs: Tensor) -> Iterator[Hazard]:
    """Finds models that return no row axis for a batch of one record."""
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
                "the model's forward",
                f"it returns shape {shape} for {len(inputs)} records and {got} for one: it drops "
                "the record axis of a single record",
                "Name the axis: squeeze(1) or flatten(1), not squeeze()",
            )


def _is_frozen(layer: nn.Module) -> bool:
    return not any(weight.requires_grad for weight in layer.parameters())


@contextmanager
def same_draws(seed: int = 0) -> Iterator[None]:
    """Draws the same numbers every time, and preserves the global random states."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _mixed_rows(model: nn.Module, inputs: Tensor, is_whole: Tensor) -> Iterator[Hazard]:
    """Changes the first record and finds the module in which others change with it."""
    changed = inputs.clone()
    changed[0] = torch.where(is_whole, inputs[-1], 10 * inputs[0] + 1)
    before, again, after = (_seen(model, rows) for rows in (inputs, inputs, changed))
    if _differ(before[""][1], again[""][1], len(inputs)):
        yield Hazard(
            "kept state",
            "the model's forward",
            "called twice on the same records with equal draws, it answers differently: it counts "
            "its calls, stores what it saw, or draws with Python's random or numpy",
            "Compute from the record and the weights only, and draw with torch",
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
        where = blamed or "the model's forward"
        yield Hazard(
            "batch statistics",
            where,
            f"when one record changes, the output of {type(model.get_submodule(blamed)).__name__} "
            "for the others changes too",
            "Compute from each record separately; replace batch statistics by constants from "
            "public data",
        )


def _seen(model: nn.Module, inputs: Tensor) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Runs the model in training mode and records the inputs and outputs of every module."""
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
    """Returns whether anything but the first record's row differs."""
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
    """Yields copies of the tensors and restores their values afterwards."""
    kept = {name: tensor.detach().clone() for name, tensor in held.items()}
    try:
        yield kept
    finally:
        with torch.no_grad():
            for name, tensor in held.items():
                tensor.copy_(kept[name])


def _moving(model: nn.Module, inputs: Tensor) -> Iterator[Hazard]:
    """Finds tensors that a forward pass in training mode changes, published without noise."""
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
            "a forward pass in training mode writes to it, and its content gets no noise",
            "Keep its module in evaluation mode, or use one without running statistics (for an "
            "embedding, without max_norm)",
        )
