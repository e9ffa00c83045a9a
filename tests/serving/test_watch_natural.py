"""A watch learns from natural inputs of any kind and order, and sees near inputs among them."""

import pytest
import torch
from torch import Tensor, nn

from shieldnet.core.errors import DataError
from shieldnet.serving.query_patterns import Profile, Suspicion
from shieldnet.serving.watch import Watch, WatchPolicy

SILENT, POLICY = WatchPolicy(1.0, 1.0, 1.0), WatchPolicy()


class Clusters:
    """Inputs around a center for each class, some classes denser, and a model that knows them."""

    def __init__(self, classes: int, width: int = 16) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.centers = 3 * self.normal(classes, width)
        self.sizes = torch.rand(classes, 1, generator=self.generator) * 0.8 + 0.2

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def labels(self, rows: int) -> Tensor:
        return torch.randint(len(self.centers), (rows,), generator=self.generator)

    def inputs(self, labels: Tensor) -> Tensor:
        noise = self.normal(len(labels), self.centers.shape[1])
        return self.centers[labels] + self.sizes[labels] * noise

    def answers(self, inputs: Tensor) -> Tensor:
        return torch.softmax(-torch.cdist(inputs, self.centers), -1)


def moved(inputs: Tensor, rows: int = 16, jitter: float = 1e-3) -> Tensor:
    """Returns copies of the first input, each moved a little."""
    generator = torch.Generator().manual_seed(1)
    like = (rows, *inputs.shape[1:])
    return inputs[:1].float() + jitter * torch.randn(like, generator=generator)


@pytest.mark.parametrize(
    ("classes", "rows"),
    [(10, 1000), (20, 200), (30, 1000), (100, 5000), (300, 5000), (1000, 400)],
)
def test_moved_inputs_are_close_and_others_are_not_with_any_number_of_classes(
    classes: int, rows: int
) -> None:
    world = Clusters(classes)
    natural = world.inputs(world.labels(rows))
    watch = Watch(Profile.of(natural, world.answers(natural), seed=0), SILENT)
    assert bool((watch.profile.close_below > 0).all())
    queries = moved(natural)
    assert watch.note("eve", queries, world.answers(queries)).close > POLICY.refuse_above
    queries = world.inputs(world.labels(300))
    assert watch.note("all", queries, world.answers(queries)).close < POLICY.log_above
    for label in (*world.sizes.flatten().argsort()[:3], 0):  # the densest, and any
        queries = world.inputs(torch.full((300,), int(label)))
        alone = watch.note(f"class {label}", queries, world.answers(queries))
        assert alone.close < POLICY.log_above


def drawn(kind: str, rows: int, seed: int) -> Tensor:
    """Draws inputs of a kind that hold repeats, lie on a grid, or are far off now and then."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, 8, generator=generator)
    pool = torch.randn(20, 8, generator=torch.Generator().manual_seed(99))
    places = torch.randint(20, (rows,), generator=generator)
    if kind == "repeats":
        return torch.where(torch.rand(rows, 1, generator=generator) < 0.3, pool[places], normal)
    if kind == "far off now and then":
        return torch.cat([normal, normal[:, :1] / normal[:, 1:2]], 1)
    if kind == "one-hot":
        chosen = torch.randint(6, (rows, 4), generator=generator)
        return nn.functional.one_hot(chosen, 6).flatten(1).float()
    if kind == "uint8 image":
        pixels = torch.randn(rows, 1, 6, 6, generator=generator) * 40 + 128
        return pixels.clamp(0, 255).to(torch.uint8)
    bits = {"3 bits": 3, "12 bits": 12}[kind]
    return torch.randint(2, (rows, bits), generator=generator).float()


def answers(inputs: Tensor, kind: str) -> Tensor:
    """Answers as a model of four classes, as labels alone, or as a model without classes."""
    if kind == "no classes":
        return torch.ones(len(inputs), 1)
    flat = inputs.flatten(1).float()
    weights = torch.randn(flat.shape[1], 4, generator=torch.Generator().manual_seed(5))
    scores = (flat - 0.5 if flat.shape[1] != 36 else flat - 128) @ weights
    if kind == "labels":
        return nn.functional.one_hot(scores.argmax(1), 4).float()
    return scores.softmax(-1)


@pytest.mark.parametrize("answer", ["scores", "labels", "no classes"])
@pytest.mark.parametrize(
    "kind", ["repeats", "far off now and then", "one-hot", "uint8 image", "3 bits", "12 bits"]
)
def test_inputs_that_repeat_or_lie_on_a_grid_blind_no_watch(kind: str, answer: str) -> None:
    natural = drawn(kind, 1500, 0)
    watch = Watch(Profile.of(natural, answers(natural, answer), seed=0), SILENT)
    queries = moved(natural)
    assert watch.note("eve", queries, answers(queries, answer)).close > POLICY.refuse_above
    for seed in (1, 2, 3):
        queries = drawn(kind, 300, seed)
        for part in queries.split(10):
            found = watch.note(f"honest {seed}", part, answers(part, answer))
        # Of what is far off now and then, the shape of the distances differs from day to day.
        shape = 0.0 if kind == "far off now and then" else found.uneven
        assert max(found.novel, found.close, found.unsure, shape) < POLICY.log_above


def honest(profile: Profile, world: Clusters) -> Suspicion:
    queries = world.inputs(world.labels(100))
    return Watch(profile, SILENT).note("honest", queries, world.answers(queries))


@pytest.mark.parametrize("rows", [900, 3000])
def test_the_order_of_a_file_does_not_matter(rows: int) -> None:
    world = Clusters(10)
    by_class = world.inputs(world.labels(rows).sort().values)
    found = honest(Profile.of(by_class, world.answers(by_class), seed=0), world)
    assert found.score < POLICY.log_above
    ordered = by_class[by_class[:, 0].argsort()]
    ordered = ordered[:, :1].expand(-1, 16) / 4 + ordered / 100  # as of a slow drift
    profiles = [
        Profile.of(each, torch.ones(rows, 1), seed=0)
        for each in (ordered, ordered[torch.randperm(rows, generator=world.generator)])
    ]
    assert profiles[0].least_normality == pytest.approx(profiles[1].least_normality, abs=0.15)


def test_the_same_inputs_teach_the_same_whatever_the_global_seed() -> None:
    world = Clusters(10)
    natural = world.inputs(world.labels(2000))
    torch.manual_seed(1)
    first = Profile.of(natural, world.answers(natural), seed=0)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    second = Profile.of(natural, world.answers(natural), seed=0)
    assert torch.equal(first.natural, second.natural)
    assert torch.equal(first.close_below, second.close_below)
    assert first.least_normality == second.least_normality


def test_inputs_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(DataError, match="natural inputs that differ, got the same one 300 times"):
        Profile.of(torch.ones(300, 4), torch.ones(300, 2) / 2)
