"""One step after another: who is drawn, what is learned, and what is kept."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from shieldnet.errors import TrainingFailed
from shieldnet.randomness import heads, noise_about, normals, random_seed
from shieldnet.training.checkpoint import State, load, save
from shieldnet.training.countermeasures import Countermeasure
from shieldnet.training.gradients import Gradients, Losses, Predict, Recorded, clipped_sum
from shieldnet.training.losses import Loss
from shieldnet.training.private import DPSGD
from shieldnet.training.ranks import Ranks
from shieldnet.training.records import Records

_MEMORY = 2**28
_MOST_ROWS = 256
_HUGE = 1e3
_LOOKED_AT = 50  # steps after which weights are looked at, whether they are finite


@dataclass(frozen=True)
class Course:
    """Says what is learned from records: the loss, and what countermeasures make of it."""

    loss: Loss
    countermeasures: tuple[Countermeasure, ...] = ()

    def move(self, inputs: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        """Returns what to learn from, of inputs."""
        for one in self.countermeasures:
            inputs = one.move(inputs, labels, predict, self.loss)
        return inputs

    @property
    def losses(self) -> Losses:
        """Returns one loss for every record."""

        def plain(predict: Predict, inputs: Tensor, labels: Tensor) -> Tensor:
            return self.loss(predict(inputs), labels)

        losses: Losses = plain
        for one in self.countermeasures:
            losses = one.losses(losses, self.loss)
        return losses


@dataclass
class Plain:
    """Learns from batches of a shuffled order, as everybody does."""

    model: nn.Module
    records: Records
    course: Course
    size: int
    ranks: Ranks
    _order: tuple[int, Tensor] = field(default=(-1, torch.empty(0)))

    def start(self, state: State) -> None:
        """Needs nothing that a checkpoint holds."""

    def __call__(self, step: int, state: State) -> Sequence[Tensor]:
        """Returns the mean gradient of a step's batch."""
        rows = self._drawn(step)
        weights = [one for one in self.model.parameters() if one.requires_grad]
        mine = self.ranks.share(rows)
        if not len(mine):
            return self.ranks.summed([torch.zeros_like(one) for one in weights])
        inputs, labels = _at(self.records, mine, weights[0].device)
        moved = self.course.move(inputs, labels, self.model)
        loss = self.course.losses(self.model, moved, labels).sum() / len(rows)
        found = torch.autograd.grad(loss, weights, materialize_grads=True)
        return self.ranks.summed([one.contiguous() for one in found])

    def release(self) -> None:
        """Has nothing on the model."""

    def _drawn(self, step: int) -> Tensor:
        each = -(-len(self.records) // self.size)
        epoch, place = divmod(step, each)
        if self._order[0] != epoch:
            with noise_about("epoch", epoch):
                generator = torch.Generator().manual_seed(random_seed())
            order = torch.randperm(len(self.records), generator=generator)
            self._order = (epoch, self.ranks.told(order))
        # Parts as even as they can be: one record alone has no batch statistics.
        return self._order[1].tensor_split(each)[place]


@dataclass
class Private:
    """Learns from records drawn by coins: clips each, sums, adds noise.

    noise: deviation, in clip norms. rate: the chance of a record to be drawn.
    """

    way: Gradients
    records: Records
    course: Course
    settings: DPSGD
    noise: float
    rate: float
    ranks: Ranks

    def start(self, state: State) -> None:
        """Tosses the canaries' coins, once in a run."""
        count = self.settings.canaries if self.ranks.is_first else 0
        if len(state.coins) != count:
            with noise_about("coins"):
                state.coins = heads(count, 0.5)
            state.scores = torch.zeros(count, dtype=torch.float64)

    def __call__(self, step: int, state: State) -> Sequence[Tensor]:
        """Returns the noisy sum of a step's clipped gradients, over the size of a batch."""
        rows = self.ranks.told(heads(len(self.records), self.rate)).nonzero()[:, 0]
        totals = [torch.zeros_like(one) for one in self.way.weights]
        for part in self.ranks.share(rows).split(self._physical):
            if len(part):  # coins may have drawn nobody
                torch._foreach_add_(totals, self._clipped(part))
        if self.ranks.is_first:
            canaries = [self._canaries(state)] if len(state.coins) else []
            add_noise([*totals, *canaries], self.noise * self.settings.clip)
            for one in canaries:
                state.scores += _surprise(one / self.settings.clip, self.noise, self.rate)
        self.ranks.summed(totals)
        torch._foreach_div_(totals, self.rate * len(self.records))
        return totals

    def release(self) -> None:
        """Takes hooks off the model."""
        self.way.release()

    def _clipped(self, rows: Tensor) -> list[Tensor]:
        inputs, labels = _at(self.records, rows, self.way.weights[0].device)
        return self.way(*self.way.prepared(inputs, labels, self.course.move))

    def _canaries(self, state: State) -> Tensor:
        """Sums the gradients of the canaries that are in and drawn: huge, one weight for each."""
        count = len(state.coins)
        places = (state.coins & heads(count, self.rate)).nonzero()[:, 0]
        each = torch.zeros(len(places), count)
        each[torch.arange(len(places)), places] = _HUGE * self.settings.clip
        return clipped_sum([each], self.settings.clip)[0]

    @property
    def _physical(self) -> int:
        if self.settings.max_physical_batch is not None:
            return self.settings.max_physical_batch
        if not isinstance(self.way, Recorded):
            return max(1, _MOST_ROWS // self.way.views)
        return max(1, min(_MOST_ROWS, _MEMORY // self.way.held))


def add_noise(sums: Sequence[Tensor], deviation: float) -> None:
    """Adds a normal of ``deviation`` to every number, in place, from secure randomness."""
    noise = normals(sum(one.numel() for one in sums)).mul_(deviation)
    for one, drawn in zip(sums, noise.split([one.numel() for one in sums]), strict=True):
        one.add_(drawn.view(one.shape).to(one))


def _surprise(seen: Tensor, noise: float, rate: float) -> Tensor:
    """Returns the log of how much likelier a canary's noisy sum is if the canary is in.

    The best score there is: who sees a sum of 1 with chance ``rate``, else 0, plus the noise.
    """
    shift = (seen.double() - 0.5) / noise**2
    if rate == 1:
        return shift
    odds = torch.tensor(rate, dtype=torch.float64)
    return torch.logaddexp((1 - odds).log(), odds.log() + shift)


def _at(records: Records, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    return records.inputs[rows].to(device), records.labels[rows].to(device)


@dataclass(frozen=True)
class Keeper:
    """Keeps a training in a folder every so many seconds, if there is one."""

    folder: Path | None
    key: str
    every_s: float
    ranks: Ranks

    def found(self) -> State:
        """Returns where the training stood, the same for all ranks."""
        state = None if self.folder is None else load(self.folder, self.key)
        return state or State()

    def is_time(self, since: float, *, last: bool) -> bool:
        """Says whether the state is to be written."""
        return self.folder is not None and (last or time.monotonic() - since > self.every_s)

    def keep(self, state: State) -> float:
        """Writes the state; returns when that was."""
        if self.folder is not None and self.ranks.is_first:
            save(self.folder, self.key, state)
        return time.monotonic()


def train(
    model: nn.Module,
    learn: Plain | Private,
    steps: int,
    optimizer: torch.optim.Optimizer,
    keeper: Keeper,
    ema: float,
    tell: Callable[[int], object],
) -> State:
    """Takes all steps that are left and leaves the model with the weights that are released."""
    state = keeper.found()
    named = {name: one for name, one in model.named_parameters() if one.requires_grad}
    buffers = dict(model.named_buffers())
    given = {name: one.clone() for name, one in buffers.items()}
    if state.step:
        with torch.no_grad():
            for name, one in (*named.items(), *buffers.items()):
                one.copy_(state.weights[name])
        optimizer.load_state_dict(state.optimizer)
        state.mean = {name: one.to(named[name].device) for name, one in state.mean.items()}
    elif ema:
        state.mean = {name: one.detach().clone() for name, one in named.items()}
    learn.start(state)
    since = time.monotonic()
    while state.step < steps:
        with noise_about("step", state.step):
            torch.manual_seed(random_seed())  # of dropout and augmentation: not secret
            found = learn(state.step, state)
        for weight, one in zip(named.values(), found, strict=True):
            weight.grad = one
        optimizer.step()
        state.step += 1
        for name, mean in state.mean.items():
            decay = min(ema, state.step / (state.step + 9))  # the first weights are soon forgotten
            mean.lerp_(named[name].detach(), 1 - decay)
        last = state.step == steps
        if last or state.step % _LOOKED_AT == 0:
            _require_finite(named, state.step)
        if isinstance(learn, Private):  # what a forward pass left in them has no noise
            for name, one in buffers.items():
                one.copy_(given[name])
        if keeper.is_time(since, last=last):
            state.weights = {k: v.detach().clone() for k, v in (*named.items(), *buffers.items())}
            state.optimizer = optimizer.state_dict()
            since = keeper.keep(state)
        tell(state.step)
    with torch.no_grad():
        for name, one in named.items():
            one.grad = None
            if name in state.mean:
                one.copy_(state.mean[name])
    return state


def _require_finite(named: dict[str, nn.Parameter], step: int) -> None:
    broken = next((name for name, one in named.items() if not torch.isfinite(one).all()), None)
    if broken is not None:
        raise TrainingFailed(
            f"After step {step} the weights {broken} are not finite: the training diverged. Take a "
            "smaller lr. Nothing was returned."
        )
