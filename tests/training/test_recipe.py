from dataclasses import replace

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.training import recipe as recipe_module

ROWS = [torch.arange(0, 60), torch.arange(40, 100), torch.arange(20, 80)]


def data(shape: tuple[int, ...] = (6,)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(100, *shape, generator=generator)
    return inputs, (inputs.flatten(1)[:, 0] > 0).long()


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))


class WithEverything(nn.Module):
    """Batch statistics, dropout and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.1)
        )
        self.head = nn.Linear(24, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x.unsqueeze(1)).flatten(1))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_models_trained_as_one_are_those_trained_alone(optimizer) -> None:
    recipe = sn.Recipe(
        small, epochs=8, learning_rate=0.02, batch_size=16, optimizer=optimizer, weight_decay=1e-3
    )
    inputs, labels = data()
    together = recipe.models(inputs, labels, ROWS, [5, 6, 7])
    for model, rows, seed in zip(together, ROWS, (5, 6, 7), strict=True):
        alone = recipe((inputs[rows], labels[rows]), seed)
        for one, other in zip(model.parameters(), alone.parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-4)


def test_what_is_trained_as_one_learns() -> None:
    recipe = sn.Recipe(small, epochs=30)
    inputs, labels = data()
    for model, rows in zip(recipe.models(inputs, labels, ROWS, [0, 1, 2]), ROWS, strict=True):
        assert not model.training
        assert (model(inputs[rows]).argmax(-1) == labels[rows]).float().mean() > 0.95


@pytest.mark.parametrize("together", [True, False])
def test_batch_statistics_dropout_and_convolutions_are_trained_too(together) -> None:
    recipe = sn.Recipe(WithEverything, epochs=10, together=together)
    inputs, labels = data()
    models = recipe.models(inputs, labels, ROWS, [0, 1, 2])
    assert all(int(model.body[1].num_batches_tracked) == 20 for model in models)
    means = [model.body[1].running_mean for model in models]
    assert not torch.equal(means[0], means[1])
    assert (models[0](inputs[ROWS[0]]).argmax(-1) == labels[ROWS[0]]).float().mean() > 0.8


def test_convolutions_are_trained_one_after_the_other_by_default() -> None:
    assert not sn.Recipe(WithEverything)._as_one(WithEverything())
    assert sn.Recipe(small)._as_one(small())


def test_the_same_seed_gives_the_same_model_and_the_global_seed_is_left_alone() -> None:
    recipe = sn.Recipe(WithEverything, epochs=2)
    state = torch.get_rng_state()
    one, two, other = (recipe(data(), seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert all(parameter.grad is None for parameter in one.parameters())


def test_models_of_probabilities_and_of_one_yes_or_no_are_trained() -> None:
    def probabilities() -> nn.Module:
        return nn.Sequential(small(), nn.Softmax(-1))

    inputs, labels = data()
    model = sn.Recipe(probabilities, outputs="probabilities", epochs=20)((inputs, labels), 0)
    assert (model(inputs).argmax(-1) == labels).float().mean() > 0.9
    single = sn.Recipe(lambda: nn.Linear(6, 1), epochs=20)((inputs, labels), 0)
    assert ((single(inputs)[:, 0] > 0).long() == labels).float().mean() > 0.9


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"make_model": nn.Linear(2, 2)}, "Expected make_model to be a function"),
        ({"epochs": 0}, "Expected epochs >= 1"),
        ({"learning_rate": float("nan")}, "Expected a finite learning_rate > 0"),
        ({"momentum": -1.0}, "Expected momentum >= 0"),
        ({"optimizer": "lbfgs"}, "Expected optimizer to be one of sgd, adam"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(settings, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        sn.Recipe(**{"make_model": small, **settings})


def test_what_makes_no_model_and_what_has_no_rows_is_refused() -> None:
    with pytest.raises(sn.errors.ConfigError, match="make_model to return an nn.Module, got int"):
        sn.Recipe(lambda: 3)(data(), 0)
    with pytest.raises(sn.errors.DataError, match="at least one row"):
        sn.Recipe(small).models(*data(), [torch.arange(0)], [0])


def test_a_recipe_of_values_learns_targets_of_one_output_or_of_several() -> None:
    inputs, _ = data()
    for outputs in (1, 2):
        targets = inputs[:, :outputs] * 3
        recipe = sn.Recipe(lambda k=outputs: nn.Linear(6, k), epochs=60, outputs="values")
        for given in (targets, targets.squeeze(1)):
            model = recipe((inputs, given), 0)
            assert (model(inputs) - targets).abs().max() < 0.05
        with pytest.raises(sn.errors.ConfigError, match="outputs for targets of as many, got"):
            recipe((inputs, torch.zeros(100, 3)), 0)


class Named(nn.Module):
    """Answers with a dict, and branches on what it reads, which vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if bool((x > 1e6).any()):
            x = x * 0
        return {"logits": self.layer(x), "hidden": x}


def test_models_that_name_their_scores_and_that_vmap_refuses_are_trained() -> None:
    x, y = torch.randn(40, 4), torch.randint(3, (40,))
    rows, seeds = [torch.arange(20), torch.arange(20, 40)], [0, 1]
    recipe = sn.Recipe(Named, epochs=3)
    several = recipe.models(x, y, rows, seeds)
    alone = [recipe((x[own], y[own]), seed) for own, seed in zip(rows, seeds, strict=True)]
    for one, other in zip(several, alone, strict=True):
        assert torch.allclose(one.layer.weight, other.layer.weight)
    with pytest.raises(RuntimeError, match="vmap"):
        replace(recipe, together=True).models(x, y, rows, seeds)


def test_models_with_batch_statistics_are_still_trained_as_one(monkeypatch) -> None:
    def one_by_one(model: nn.Module) -> None:
        pytest.fail("trained one by one")

    monkeypatch.setattr(recipe_module, "_Single", one_by_one)

    def normalized() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False))

    models = sn.Recipe(normalized, epochs=1).models(*data(), ROWS, [0, 1, 2])
    assert len(models) == 3
