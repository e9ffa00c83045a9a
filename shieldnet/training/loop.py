"""One step after another: who is drawn, what is learned, and what is kept."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from shieldnet.core.errors import DataError, TrainingFailed
from shieldnet.core.randomness import bernoulli, noise_about, random_seed
from shieldnet.training.checkpoint import State, load, save
from shieldnet.training.countermeasures.base import Countermeasure
from shieldnet.training.distributed import Ranks
from shieldnet.training.losses import Loss
from shieldnet.training.private.dpsgd import DPSGD
from shieldnet.training.private.gradient_parts import Gradient, Whole, clipped_sum, sum_error
from shieldnet.training.private.gradients import Losses, Predict, RecordGradients
from shieldnet.training.private.lattice import Lattice
from shieldnet.training.records import Records

_MAX_BYTES = 2**28
_MAX_ROWS = 256
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
    """Learns from records drawn by coins: clips each, sums, adds noise on a grid.

    noise: deviation, in what one record moves a sum by. rate: the chance of a record to be drawn.
    """

    gradients: RecordGradients
    records: Records
    settings: DPSGD
    noise: float
    rate: float
    ranks: Ranks

    def start(self, state: State) -> None:
        """Tosses the canaries' coins and sets the first clip norm, once in a run."""
        state.clip = state.clip or self.settings.clipping.start
        count = self.settings.canaries if self.ranks.is_first else 0
        if len(state.coins) != count:
            with noise_about("coins"):
                state.coins = bernoulli(count, 0.5)
            state.scores = torch.zeros(count, dtype=torch.float64)

    def __call__(self, step: int, state: State) -> Sequence[Tensor]:
        """Returns the noisy sum of a step's clipped gradients, over the size of a batch."""
        rows = self.ranks.told(bernoulli(len(self.records), self.rate)).nonzero()[:, 0]
        clip, size = self.settings.clipping, self.rate * len(self.records)
        self.gradients.clip = state.clip
        totals = self.gradients.zeros()
        within = torch.zeros((), dtype=torch.float64, device=totals[0].device)
        empty = torch.zeros(0, dtype=torch.float64)
        for number, part in enumerate(self.ranks.share(rows).split(self.physical)):
            if len(part):  # coins may have drawn nobody
                # A batch's many terms are not rounded at the size of the total.
                own = self.gradients.zeros() if number else totals
                within = within + self._add(own, part)
                if number:
                    torch._foreach_add_(totals, own)
        self.ranks.summed([*totals, within])
        counted = clip.counted(within, len(rows), self.noise, size)
        scale = clip.scale(state.clip, self.noise, size)
        if self.ranks.is_first:
            canaries = [self._canaries(state)] if len(state.coins) else []
            if scale != 1:
                torch._foreach_mul_([*totals, *canaries], scale)
            totals = self.lattice.released([*totals, *canaries, *counted])
            counted = [totals.pop() for _ in counted]
            if canaries:
                height = scale * state.clip
                deviation = self.lattice.deviation * self.lattice.step / height
                state.scores += _surprise(totals.pop().cpu() / height, deviation, self.rate)
        totals = [self.ranks.told(total) for total in totals]
        seen = torch.cat([self.ranks.told(part) for part in counted]) if counted else empty
        state.clip = clip.next(state.clip, seen, self.noise, size)
        for total, row in zip(totals, self.gradients.silent_rows, strict=True):
            if row is not None:  # of padding: it has no gradient, so it gets no noise
                total[row] = 0.0
        return [
            total.div_(size * scale).to(weight.dtype)
            for total, weight in zip(totals, self.gradients.weights, strict=True)
        ]

    def _add(self, totals: Sequence[Tensor], rows: Tensor) -> Tensor:
        """Adds the gradients of these rows; returns how many are no longer than the clip norm."""
        inputs, labels = _at(self.records, rows, self.gradients.weights[0].device)
        try:
            batch, within = self.gradients.add(totals, inputs, labels)
        except IndexError as outside:
            raise DataError(
                f"A record holds a number that the model has no place for, such as a word beyond "
                f"its table: {str(outside).splitlines()[0]:.200}. Nothing was published."
            ) from outside
        row = int(torch.randint(len(rows), ()))
        difference = self.gradients.difference(batch, inputs, labels, row)
        if difference > self.gradients.tolerance:
            raise TrainingFailed(
                f"A record's gradient in a batch differs by {difference:.2g} of its norm from the "
                "one that it has alone. Nothing was published. This should not be possible: please "
                "report it with the model."
            )
        return within

    def _canaries(self, state: State) -> Tensor:
        """Sums the gradients of the canaries that are in and drawn: huge, one weight for each."""
        count = len(state.coins)
        places = (state.coins & bernoulli(count, self.rate)).nonzero()[:, 0]
        each = torch.zeros(len(places), count)
        each[torch.arange(len(places)), places] = _HUGE * state.clip
        total = torch.zeros(count, dtype=torch.float64)
        clipped_sum([Gradient((Whole(each),))], state.clip, [total])
        return total.to(self.gradients.weights[0].device)

    @cached_property
    def lattice(self) -> Lattice:
        """Returns the grid on which sums are released."""
        clip = self.settings.clipping
        numbers = sum(weight.numel() for weight in self.gradients.weights)
        records = len(self.records)
        return Lattice.of(
            self.noise,
            clip.unit,
            numbers=numbers + self.settings.canaries + clip.numbers,
            records=records,
            error=sum_error(records, self.physical, self.gradients.terms, scaled=clip.numbers > 0),
        )

    @property
    def physical(self) -> int:
        """Returns how many records' gradients are in memory at once, at most."""
        if self.settings.max_physical_batch_size is not None:
            return self.settings.max_physical_batch_size
        return max(1, min(_MAX_ROWS, _MAX_BYTES // max(1, self.gradients.bytes_per_record)))


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
    run: str = ""

    def found(self, steps: int) -> State:
        """Returns where the training stood, the same for all ranks."""
        state = None if self.folder is None else load(self.folder, self.key, steps)
        return state or State(run=self.run)

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
    state = keeper.found(steps)
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
            _seed_draws()  # of dropout and augmentation: not secret
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


def _seed_draws() -> None:
    """Seeds torch's generators, as ``torch.manual_seed`` does in a fiftieth of its time."""
    seed = random_seed()
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _require_finite(named: dict[str, nn.Parameter], step: int) -> None:
    broken = next((name for name, one in named.items() if not torch.isfinite(one).all()), None)
    if broken is not None:
        raise TrainingFailed(
            f"After step {step} the weights {broken} are not finite: the training diverged. Take a "
            "smaller learning_rate. Nothing was returned."
        )
