"""Models, losses and countermeasures that want to see other records: none moves a sum by more."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import shieldnet as sn
from shieldnet.training.private import lattice

CLIP = 0.5


class Net(nn.Module):
    """Classifies 8 numbers; what comes between its layers is the adversary's."""

    def __init__(self, between=None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 2)
        self.between = between

    def forward(self, x):
        hidden = self.first(x)
        return self.last(hidden if self.between is None else self.between(hidden))


class GuardedByASize(nn.Module):
    def forward(self, x):
        return (x - x.mean(0)) / (x.std(0) + 1e-5) if len(x) >= 16 else x


class Mixing(nn.Module):
    """MixStyle behind a coin of torch's."""

    def forward(self, x):
        coin = (torch.rand(()) < 0.3).to(x)
        return x + coin * 10 * x.mean(0)


class PythonCoin(nn.Module):
    def forward(self, x):
        return x + 10 * x.mean(0) if random.random() < 0.3 else x  # noqa: S311


class NumpyCoin(nn.Module):
    def forward(self, x):
        return x * float(np.random.rand()) + x.sum(0)


class Experts(nn.Module):
    """Sends each record to one of four experts, of which each takes so many records alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])

    def forward(self, x):
        chosen = F.one_hot(self.gate(x).argmax(1), 4)
        within = (chosen.cumsum(0) * chosen).sum(1) <= max(8, len(x) // 4)
        answers = torch.stack([expert(x) for expert in self.experts], 1)
        return (answers * chosen[:, :, None]).sum(1) * within[:, None] * 5


class Sorting(nn.Module):
    def forward(self, x):
        return x.sort(0).values


class Running(nn.Module):
    def forward(self, x):
        return x.cumsum(0)


class Neighbors(nn.Module):
    def forward(self, x):
        return x + 3 * x.roll(1, 0)


class Gathering(nn.Module):
    def forward(self, x):
        return x.gather(0, x.argsort(0))


class AcrossTheBatch(nn.Module):
    def forward(self, x):
        return 30 * x.softmax(0)


class Attending(nn.Module):
    """Takes the records of a batch for the tokens of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        return 5 * self.layer(x, x, x)[0]


class FunctionalNorm(nn.Module):
    def forward(self, x):
        return F.batch_norm(x, None, None, training=True) if len(x) > 1 else x


class MixedSlopes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope + 10 * slope.sum(0)


class OnlyBackward(nn.Module):
    """Is honest in its answers and mixes slopes."""

    def forward(self, x):
        return MixedSlopes.apply(x)


class Scaled(nn.Module):
    def forward(self, x):
        return x * len(x)


class WritingInPlace(nn.Module):
    def forward(self, x):
        x = x.clone()
        x[1:] += 10 * x[:-1].detach()
        return x


CALLS = []


class GlobalCounter(nn.Module):
    def forward(self, x):
        CALLS.append(1)
        return x * (1 + len(CALLS) % 7)


class Memory(nn.Module):
    """Keeps every record that it sees in a plain list and adds them to others."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = []

    def forward(self, x):
        self.kept.append(x.detach())
        return x + 10 * sum(part.sum(0) for part in self.kept)


class Queue(nn.Module):
    """Keeps the last batch's mean in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        answer = x + 10 * self.mean
        self.mean.copy_(x.detach().mean(0))
        return answer


class FollowingWeights(nn.Module):
    """Keeps a running mean of a weight in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("kept", torch.zeros(8, 8))

    def forward(self, x):
        self.kept.mul_(0.5).add_(self.layer.weight.detach(), alpha=0.5)
        return self.layer(x) @ self.kept * 5


class ByValue(nn.Module):
    def forward(self, x):
        return x * 10 if float(x.sum()) > 0 else x


@torch.library.custom_op("shieldnet_adversaries::hoard", mutates_args=())
def hoard(x: torch.Tensor) -> torch.Tensor:
    CALLS.append(x.clone())
    return x + 10 * x.mean(0)


hoard.register_fake(torch.empty_like)
hoard.register_autograd(lambda ctx, slope: slope)


class Hoarding(nn.Module):
    def forward(self, x):
        return hoard(x)


def hooked() -> nn.Module:
    model = Net()
    model.first.register_forward_hook(lambda layer, given, output: output - 5 * output.mean(0))
    return model


MODULES = [
    *(GuardedByASize, Mixing, PythonCoin, NumpyCoin, Experts, Sorting, Running, Neighbors),
    *(Gathering, AcrossTheBatch, Attending, FunctionalNorm, OnlyBackward, Scaled, WritingInPlace),
    *(GlobalCounter, Memory, Queue, FollowingWeights, ByValue, Hoarding),
]


def over_the_positives(output, labels):
    return F.cross_entropy(output, labels, reduction="none") / (labels == 1).sum().clamp_min(1)


def over_the_batch(output, labels):
    each = F.cross_entropy(output, labels, reduction="none")
    return 100 * each / (each.detach().sum() + 1e-3) + each.detach().max()


SEEN = []


def remembering(output, labels):
    SEEN.append(output.detach())
    return F.cross_entropy(output + sum(part.sum(0) for part in SEEN), labels, reduction="none")


def with_the_last(inputs):
    SEEN.append(inputs.detach().mean(0))
    return inputs + 10 * sum(SEEN[-3:])


LOSSES = [over_the_positives, over_the_batch, remembering]


@pytest.fixture(autouse=True)
def _forget():
    CALLS.clear()
    SEEN.clear()


@pytest.fixture
def without_noise(monkeypatch):
    """Lets sums be seen: what is released is the sum on its grid."""
    monkeypatch.setattr(
        lattice,
        "lattice_gaussian",
        lambda count, deviation: torch.zeros(count, dtype=torch.float64),
    )


def records() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = 0.3 * torch.randn(41, 8, generator=generator)
    inputs[-1] = torch.tensor([30.0, -20, 5, 0, 0, 7, -9, 100])
    labels = torch.zeros(41, dtype=torch.int64)
    labels[-2:] = 1  # few: none is among the records that are looked at
    return inputs, labels


def influence(make, *countermeasures, loss=None) -> float:
    """Returns how far the last record moved the weights of two steps, in clip norms of a step.

    Steps on all records at learning rate 1: a step's sum is what the weights moved by. The second
    step is the one that sees what the first one left behind.
    """
    inputs, labels = records()
    moved = []
    for count in (41, 40):
        CALLS.clear()
        SEEN.clear()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make()
        random.seed(0)  # both trainings toss the same coins: what differs is the record's doing
        np.random.seed(0)
        with torch.random.fork_rng(devices=[]):
            result = sn.finetune(
                model,
                (inputs[:count], labels[:count]),
                sn.DPSGD(noise_multiplier=1.0, delta=1e-3, max_grad_norm=CLIP),
                *countermeasures,
                loss=loss,
                epochs=1,
                learning_rate=1.0,
                momentum=0.0,
                seed=0,
                progress=False,
            )
        pairs = zip(model.parameters(), result.model.parameters(), strict=True)
        moved.append(torch.cat([((a - b) * count).detach().flatten() for a, b in pairs]))
    return float((moved[0] - moved[1]).double().norm()) / CLIP


def is_safe(*arguments, **settings) -> bool:
    """Says whether a training was refused, or moved by one clip norm at most."""
    try:
        return influence(*arguments, **settings) <= 1.02  # the cut to the grid included
    except (sn.errors.PreflightFailed, sn.errors.DataError, sn.errors.ConfigError):
        return True


@pytest.mark.usefixtures("without_noise")
@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.__name__)
def test_no_module_lets_a_record_move_more_than_its_share(kind) -> None:
    assert is_safe(lambda: Net(kind()))


@pytest.mark.usefixtures("without_noise")
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_no_loss_lets_a_record_move_more_than_its_share(loss) -> None:
    assert is_safe(Net, loss=loss)


@pytest.mark.usefixtures("without_noise")
def test_no_hook_and_no_augmentation_lets_a_record_move_more_than_its_share() -> None:
    assert is_safe(hooked)
    assert is_safe(Net, sn.countermeasures.Augment(transform=with_the_last))
    assert is_safe(Net, sn.countermeasures.Augment(transform=lambda x: x - 10 * x.mean(0)))
    assert is_safe(Net, sn.countermeasures.Adversarial(0.5, steps=2, low=-100, high=100))


@pytest.mark.usefixtures("without_noise")
def test_an_honest_model_is_trained_and_moves_by_its_share() -> None:
    """Else the tests above could pass because nothing is ever trained."""
    assert 0.99 < influence(Net) <= 1.02
    assert 0.99 < influence(Net, loss=over_the_positives) <= 1.02


def test_code_of_the_users_never_sees_a_record() -> None:
    """A model, a loss and an augmentation that keep whatever they are given."""
    inputs, labels = records()
    kept = []

    class Keeping(Net):
        def forward(self, x):
            kept.append(x)
            return super().forward(x)

    def loss(output, labels):
        kept.append(output)
        return F.cross_entropy(output, labels, reduction="none")

    def transform(x):
        kept.append(x)
        return x * 1

    with torch.random.fork_rng(devices=[]):
        for train in (sn.trainable.Full(), sn.trainable.LastLayer()):
            sn.finetune(
                Keeping(),
                (inputs, labels),
                sn.DPSGD(8.0, 1e-3),
                sn.countermeasures.Augment(transform=transform),
                loss=loss,
                train=train,
                epochs=1,
            )
            sn.finetune(Keeping(), (inputs, labels), sn.DPSGD(8.0, 1e-3), train=train, epochs=1)
    seen = [one for one in kept if type(one) is torch.Tensor and one.shape[-1] == 8]
    assert seen
    rows = {tuple(row.tolist()) for row in inputs}
    assert not any(tuple(row.tolist()) in rows for one in seen for row in one.reshape(-1, 8))


def test_hooks_on_all_modules_never_see_a_record() -> None:
    """Logging and profiling set such hooks; they also ran around the captured graph."""
    inputs, _ = records()
    kept = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, given, output: kept.extend(part for part in given if len(part) > 5)
    )
    try:
        assert is_safe(Net)
    finally:
        handle.remove()
    assert not any(type(part) is torch.Tensor and part.shape == inputs.shape for part in kept)


class Watching(torch.Tensor):
    """A weight whose own code sees whatever is computed with it."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return super().__torch_function__(function, types, args, kwargs or {})


def test_weights_whose_own_code_would_run_are_refused() -> None:
    model = Net()
    model.register_buffer("scale", torch.ones(8).as_subclass(Watching))
    with pytest.raises(sn.errors.ConfigError, match="is a Watching, whose code would see"):
        sn.finetune(model, records(), sn.DPSGD(8.0, 1e-3))


@pytest.mark.usefixtures("without_noise")
def test_numbers_whose_squares_are_nothing_in_float64_are_clipped() -> None:
    """One factor of 1e-162 has a norm of 0, and times one of 1e154 a product of 1e-8."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64, bias=False).double()

        def forward(self, x):
            return self.layer(x)

    def tiny(output, labels):
        return output.sum(1) * 1.5e-162

    inputs = torch.zeros(9, 64, dtype=torch.float64)
    inputs[-1] = 1.3e154
    sums = []
    for count in (9, 8):
        data = inputs[:count], torch.zeros(count, dtype=torch.int64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Wide()
        private = sn.DPSGD(noise_multiplier=1.0, delta=1e-3, max_grad_norm=1e-10)
        result = sn.finetune(
            model, data, private, loss=tiny, epochs=1, learning_rate=1.0, momentum=0.0
        )
        sums.append((model.layer.weight - result.model.layer.weight).detach() * count)
    assert float((sums[0] - sums[1]).norm()) <= 1.1e-10


def test_a_word_beyond_the_table_is_named(make_model) -> None:
    model = make_model(lambda: nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 2)))
    words = torch.randint(0, 5, (30, 2))
    words[7] = 11
    with pytest.raises(sn.errors.DataError, match="a value outside the model's range"):
        sn.finetune(model, (words, words[:, 0] % 2), sn.DPSGD(8.0, 1e-3), epochs=1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_no_trainable_model_is_refused_by_its_own_name() -> None:
    broken = Net()
    with torch.no_grad():
        broken.first.weight[0, 0] = float("nan")
    for model, words in (
        (broken, "NaN or Inf in first.weight"),
        (torch.compile(Net()), "pass model._orig_mod"),
        (nn.Sequential(nn.LazyLinear(2)), "has no shape yet"),
        (Net().to("meta"), "on the meta device"),
        (nn.Linear(8, 2, dtype=torch.complex64), "complex"),
    ):
        with pytest.raises(sn.errors.ConfigError, match=words):
            sn.finetune(model, records(), sn.DPSGD(8.0, 1e-3))
