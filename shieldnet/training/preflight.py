"""Before a step is taken: how far can one record move the clipped sum, and who is to blame."""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shieldnet.errors import PreflightFailed
from shieldnet.training.gradients import WAYS, Ghost, Gradients, Losses, Move, Recorded
from shieldnet.training.hazards import Hazard, few_of, same_draws
from shieldnet.training.records import Records

MOST = 1.01
"""Times the clip norm: what one record may move the sum, rounding included."""
_MANY_WEIGHTS = 200_000  # above, norms alone are usually quicker than gradients
_SEEDS = 16  # draws of what is done to inputs: some of it is done only now and then
_TIMED = 64
_TIMED_BYTES = 2**26  # of gradients, record by record, while a step is timed
_SMALL_CLIP = 1e-3  # at which every gradient is clipped


@dataclass(frozen=True)
class Preflight:
    """Holds what was found before training.

    hazards: none, or nothing is trained. sensitivity: for each way to compute gradients, how far
    the worst of the tried records moved the clipped sum, in clip norms. seconds: of a step each.
    refused: ways that are wrong for this model, with the reason. way: the quickest that is right.
    """

    hazards: tuple[Hazard, ...]
    sensitivity: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    way: str = ""

    def __str__(self) -> str:
        lines = [f"hazard: {one}" for one in self.hazards]
        for way, moved in self.sensitivity.items():
            took = f", {self.seconds[way] * 1e3:.0f} ms a step" if way in self.seconds else ""
            lines.append(f"{way}: one record moved the sum by {moved:.3f} clip norms{took}")
        lines += [f"{way}: not used: {why}" for way, why in self.refused.items()]
        return "\n".join([*lines, f"chosen: {self.way or 'none'}"])

    def require(self) -> None:
        """Raises PreflightFailed with every hazard and its mend."""
        if not self.hazards:
            return
        raise PreflightFailed(
            "Nothing was trained: one record could move the sum of clipped gradients by more than "
            "the clip norm, and epsilon would be wrong.\n"
            + "\n".join(f"- {one}" for one in self.hazards)
        )


def examine(
    model: nn.Module,
    records: Records,
    losses: Losses,
    *,
    clip: float,
    views: int = 1,
    way: str = "auto",
    by_time: bool = True,
    move: Move = lambda inputs, labels, predict: inputs,
) -> Preflight:
    """Measures every way to compute gradients on a copy of the model, and times the right ones.

    model: as for ``hazards_of``, and without such hazards. way: one of ``WAYS``, or ``auto`` for
    the quickest that is right; without by_time, one that is right whatever the machine is at.
    move: what is done to inputs before a step.
    """
    model = copy.deepcopy(model)
    inputs, labels = few_of(records)
    mixed = tuple(_mixed_moves(model, move, inputs, labels))
    if mixed:
        return Preflight(mixed)
    unseen = _autograd(model, losses, move, inputs, labels)
    if unseen:
        return Preflight(tuple(unseen))
    sensitivity: dict[str, float] = {}
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name, kind in WAYS.items():
        if way not in ("auto", name) or (views > 1 and not kind.takes_views):
            continue
        if name == "functorch" and sensitivity:
            continue  # never quicker than both of the others; kept for what they cannot take
        try:
            moved, wrong = _tried(kind, model, losses, move, (inputs, labels), views)
            sensitivity[name] = moved
            if wrong:
                refused[name] = wrong
            else:
                seconds[name] = _timed(kind, model, losses, move, records, clip, views)
        except _UNSUITED as unsuited:
            refused[name] = f"{type(unsuited).__name__}: {str(unsuited).splitlines()[0][:200]}"
    if not seconds:
        return Preflight((_unsafe(sensitivity, refused, way),), sensitivity, {}, refused)
    weights = sum(one.numel() for one in model.parameters() if one.requires_grad)
    usual = ("ghost", *WAYS) if weights > _MANY_WEIGHTS else tuple(WAYS)
    first = next(name for name in usual if name in seconds)
    quickest = min(seconds, key=seconds.__getitem__) if by_time else first
    return Preflight((), sensitivity, seconds, refused, quickest)


_UNSUITED = (
    RuntimeError,
    NotImplementedError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    AssertionError,
)
"""What Opacus and torch.func raise for a model that they cannot take."""


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Turns off what is random in training: attention, and modules without weights of their own.

    Whether records see each other is looked for with everything on, under equal draws.
    """
    modes = {one: one.training for one in model.modules()}
    for one in modes:
        holds = [*one.parameters(recurse=False), *one.buffers(recurse=False)]
        plain = not holds and not isinstance(one, _BatchNorm)
        if plain or isinstance(one, nn.MultiheadAttention):
            one.training = False
    try:
        yield
    finally:
        for one, mode in modes.items():
            one.training = mode


def _mixed_moves(model: nn.Module, move: Move, inputs: Tensor, labels: Tensor) -> Iterator[Hazard]:
    """Changes the last record and looks whether what is done to the others changes with it."""
    other = torch.cat([inputs[:-1], inputs[:1]])

    def moved(seed: int, given: Tensor) -> Tensor:
        with same_draws(seed):
            return move(given, labels, model)[:-1]

    def mixed(seed: int) -> bool:
        one, two = (moved(seed, given) for given in (inputs, other))
        return not torch.allclose(one, two, rtol=1e-4, atol=1e-5, equal_nan=True)

    if any(mixed(seed) for seed in range(_SEEDS)):
        yield Hazard(
            "mixed records",
            "the countermeasures",
            "when one record changes, what is made of the others changes too",
            "Augment every record by itself, without looking at its batch",
        )


def _autograd(
    model: nn.Module, losses: Losses, move: Move, inputs: Tensor, labels: Tensor
) -> list[Hazard]:
    """Returns the weights that autograd's gradient does not reach."""
    named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    with same_draws(), _still(model):
        total = losses(model, move(inputs, labels, model), labels).sum()
        found = torch.autograd.grad(total, [one for _, one in named], allow_unused=True)
    return [
        Hazard(
            "unseen weight",
            name,
            "the loss does not depend on it, so that it would be trained on noise alone",
            "Freeze it (requires_grad_(False))",
            mends=True,
        )
        for (name, _), one in zip(named, found, strict=True)
        if one is None
    ]


def _tried(
    kind: type[Gradients],
    model: nn.Module,
    losses: Losses,
    move: Move,
    few: tuple[Tensor, Tensor],
    views: int,
) -> tuple[float, str]:
    """Returns how far one record moved the sum, and what is wrong with this way, if anything."""
    bare, model = copy.deepcopy(model), copy.deepcopy(model)
    worst = 0.0
    with same_draws(), _still(model), _still(bare):
        for clip, most in ((1.0, None), (_SMALL_CLIP, 3)):
            way = kind(model, losses, clip, views)
            try:
                missed = _missed(way, bare, losses, move, few) if most is None else ""
                if missed:
                    return math.inf, missed
                for x, y in islice(_batches(*few), most):
                    worst = max(worst, _moved_by_last(way, move, x, y) / clip)
            finally:
                way.release()
    if not worst <= MOST:
        return worst, f"one record moved the clipped sum by {worst:.3g} clip norms"
    return worst, ""


def _missed(
    way: Gradients,
    bare: nn.Module,
    losses: Losses,
    move: Move,
    few: tuple[Tensor, Tensor],
) -> str:
    """Says which weight's gradients are not those of each record alone, by autograd.

    Also of records in another order and, where they are words, of other lengths.
    """
    inputs, labels = few
    shorter = inputs.flip(0)
    if not inputs.is_floating_point() and inputs.dim() > 1:
        shorter = shorter.clone()
        for place in range(len(shorter)):
            shorter[place, inputs.shape[1] - place % inputs.shape[1] :] = 0
    names = [name for name, one in way.model.named_parameters() if one.requires_grad]
    for x, y in ((inputs, labels), (shorter, labels.flip(0))):
        with same_draws():
            moved = move(x, y, bare)
            alone = [_alone(bare, losses, moved[i : i + 1], y[i : i + 1]) for i in range(len(x))]
        norms = torch.stack([_norm(one) for one in alone])
        scale = 1e-3 * float(norms.max())
        x, y = way.viewed(moved), way.viewed(y)
        if isinstance(way, Ghost):
            if float((way.norms(x, y) - norms).abs().max()) > scale:
                return "its norms are not those of each record's gradient: a weight is used twice"
        elif isinstance(way, Recorded):
            each = way.each(x, y)
            for place, name in enumerate(names):
                right = torch.stack([one[place] for one in alone])
                if each[place].shape != right.shape or _norm([each[place] - right]) > scale:
                    return (
                        f"the gradients of {name} are not those of each record alone: it is used "
                        "elsewhere too, or rows are not records"
                    )
    return ""


def _alone(model: nn.Module, losses: Losses, inputs: Tensor, labels: Tensor) -> list[Tensor]:
    """Returns autograd's gradient of one record's loss."""
    weights = [one for one in model.parameters() if one.requires_grad]
    total = losses(model, inputs, labels).sum()
    return list(torch.autograd.grad(total, weights, materialize_grads=True))


def _norm(parts: Sequence[Tensor]) -> Tensor:
    found: Tensor = torch.stack([one.norm() for one in parts]).norm()
    return found


def _batches(inputs: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields small batches whose last record is ordinary, huge, or made to stand out."""
    mislabeled = torch.cat([labels[:-1], labels[:1]])
    yield inputs, labels
    yield inputs, mislabeled
    yield inputs[-2:], labels[-2:]
    yield torch.cat([inputs[:1].expand(len(inputs) - 1, *inputs.shape[1:]), inputs[-1:]]), labels
    if inputs.is_floating_point():
        noise = torch.randn(inputs[:1].shape, generator=torch.Generator().manual_seed(1))
        noise = noise.to(inputs.device, inputs.dtype)
        usual = inputs[-1:]
        for last in (100 * usual + 10, usual + 3000, -10 * usual, 10 * noise, 1e30 * noise):
            yield torch.cat([inputs[:-1], last]), labels
            yield torch.cat([inputs[:-1], last]), mislabeled


def _moved_by_last(way: Gradients, move: Move, inputs: Tensor, labels: Tensor) -> float:
    """Returns the distance between the clipped sums with and without the last record."""
    with same_draws():
        x, y = way.prepared(inputs, labels, move)
    sums = []
    for rows in (len(x), len(x) - way.views):
        with same_draws():
            kept = [torch.zeros_like(one) for one in way.weights]
            sums.append(way(x[:rows], y[:rows]) if rows else kept)
    squares: float = sum(
        float((one.double() - other.double()).square().sum())
        for one, other in zip(*sums, strict=True)
    )
    return math.sqrt(squares)


def _timed(
    kind: type[Gradients],
    model: nn.Module,
    losses: Losses,
    move: Move,
    records: Records,
    clip: float,
    views: int,
) -> float:
    """Times one step after another that warms up, of as many records as memory allows.

    Returns seconds for ``_TIMED`` rows.
    """
    way = kind(copy.deepcopy(model), losses, clip, views)
    count = max(1, _TIMED // views)
    if isinstance(way, Recorded):
        count = max(1, min(count, _TIMED_BYTES // way.held))
    try:
        with same_draws():
            x, y = way.prepared(records.inputs[:count], records.labels[:count], move)
            way(x, y)
            took = []
            for _ in range(4):
                start = time.perf_counter()
                way(x, y)
                took.append(time.perf_counter() - start)
                if took[-1] > 0.2:
                    break
        return min(took) * _TIMED / len(x)
    finally:
        way.release()


def _unsafe(sensitivity: dict[str, float], refused: dict[str, str], way: str) -> Hazard:
    tried = "; ".join(f"{name}: {why}" for name, why in refused.items())
    mend = (
        "Let way='auto' choose another"
        if way != "auto"
        else "Move the weight into one layer that is called with it, or freeze it"
    )
    return Hazard(
        "wrong gradients", "the model", f"no way to compute gradients is right ({tried})", mend
    )
