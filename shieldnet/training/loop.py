"""The training loop, from a checkpoint to the released weights."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shieldnet.core.errors import TrainingFailed
from shieldnet.core.randomness import noise_about, random_seed
from shieldnet.training.checkpoint import Checkpointer, State
from shieldnet.training.plan import Plan
from shieldnet.training.updates import Updates
from shieldnet.training.watching import Watch

_CHECK_EVERY = 50  # steps between checks that the weights are finite


def take_steps(plan: Plan, updates: Updates, checkpointer: Checkpointer, watch: Watch) -> State:
    """Takes all remaining steps; the model then has the weights to release.

    watch: gets every step. Errors: TrainingFailed for non-finite weights, and for a
    checkpoint that cannot be continued.
    """
    weights, optimizer = _Weights.of(updates.model), plan.optimizer(updates.model)
    state = checkpointer.latest(plan.steps)
    watch.begin(state.step)
    weights.begin(state, optimizer, plan.ema)
    updates.start(state)
    if state.step < plan.steps:
        updates.prepare(watch.tell)
    saved_at = time.monotonic()
    while state.step < plan.steps:
        with noise_about("step", state.step):
            _seed_draws()  # for dropout and augmentation: not secret
            gradients = updates(state.step, state)
        weights.follow(gradients, optimizer)
        state.step += 1
        weights.average(state, plan.ema)
        is_last = state.step == plan.steps
        if is_last or state.step % _CHECK_EVERY == 0:
            weights.require_finite(state.step)
        if not updates.keeps_buffers:
            weights.restore_buffers()
        if checkpointer.is_time(saved_at, last=is_last):
            weights.store(state, optimizer)
            saved_at = checkpointer.keep(state)
            watch.kept(state.step)
        watch.took(state.step)
    weights.release(state)
    return state


@dataclass(frozen=True)
class _Weights:
    """Holds the trained weights of a model and its buffers, by name.

    before: copies of the buffers before the first step.
    """

    trained: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    before: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> "_Weights":
        named = model.named_parameters()
        trained = {name: weight for name, weight in named if weight.requires_grad}
        buffers = dict(model.named_buffers())
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        return cls(trained, buffers, before)

    def begin(self, state: State, optimizer: torch.optim.Optimizer, ema: float) -> None:
        """Restores the state of a checkpoint, or initializes the running mean."""
        if state.step:
            with torch.no_grad():
                for name, tensor in self._all.items():
                    tensor.copy_(state.weights[name])
            optimizer.load_state_dict(state.optimizer)
            for name, mean in state.mean.items():
                state.mean[name] = mean.to(self.trained[name].device)
        elif ema:
            state.mean = {name: weight.detach().clone() for name, weight in self.trained.items()}

    def follow(self, gradients: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Takes a step of the optimizer along gradients."""
        for weight, gradient in zip(self.trained.values(), gradients, strict=True):
            weight.grad = gradient
        optimizer.step()

    def average(self, state: State, ema: float) -> None:
        """Moves the running mean toward the weights."""
        for name, mean in state.mean.items():
            decay = min(ema, state.step / (state.step + 9))  # quickly forgets the first weights
            mean.lerp_(self.trained[name].detach(), 1 - decay)

    def restore_buffers(self) -> None:
        """Restores the buffers to their values before training."""
        for name, buffer in self.buffers.items():
            buffer.copy_(self.before[name])

    def store(self, state: State, optimizer: torch.optim.Optimizer) -> None:
        """Copies everything that the next step depends on into a state."""
        state.weights = {name: tensor.detach().clone() for name, tensor in self._all.items()}
        state.optimizer = optimizer.state_dict()

    def release(self, state: State) -> None:
        """Removes gradients and replaces the weights by their running mean, if any."""
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.grad = None
                if name in state.mean:
                    weight.copy_(state.mean[name])

    def require_finite(self, step: int) -> None:
        named = self.trained.items()
        broken = next((name for name, weight in named if not torch.isfinite(weight).all()), None)
        if broken is not None:
            raise TrainingFailed(
                f"After step {step} the weights {broken} are not finite: training diverged. Take a "
                "smaller learning_rate. Nothing was returned."
            )

    @property
    def _all(self) -> dict[str, Tensor]:
        return {**self.trained, **self.buffers}


def _seed_draws() -> None:
    """Seeds torch's generators like ``torch.manual_seed``, 50 times faster."""
    seed = random_seed()
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
