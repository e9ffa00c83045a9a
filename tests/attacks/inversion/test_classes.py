from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Game
from shieldnet.attacks.inversion.classes import ClassInversion
from shieldnet.core.errors import ConfigError
from shieldnet.core.randomness import replayed_noise
from shieldnet.core.statistics import proportion
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, NotApplicable
from shieldnet.shield.module import Shield

WAYS = ("gradient", "straight_through", "queries")


class Constant(nn.Module):
    """Has a gradient, which is 0, and says the same about everything."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.arange(10.0) + 0 * x.flatten(1).sum(1, keepdim=True)


class WithoutGraph(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(x)


class Recorder(nn.Module):
    """Remembers the least and the greatest number that it was asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.low, self.high = model, float("inf"), -float("inf")

    def forward(self, x: Tensor) -> Tensor:
        low, high = (float(one) for one in x.detach().aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        return self.model(x)


def blobs(classes: int, *defenses, **settings) -> Game:
    """Returns a game on a table: classes around centers, a model that knows the centers."""
    generator = torch.Generator().manual_seed(0)
    centers = 3 * torch.randn(classes, 6, generator=generator)
    labels = torch.arange(8 * classes) % classes
    rows = [centers[labels] + torch.randn(8 * classes, 6, generator=generator) for _ in range(3)]
    model = nn.Linear(6, classes)
    with torch.no_grad():
        model.weight.copy_(centers)
        model.bias.copy_(-centers.square().sum(1) / 2)
    sets = zip(("members", "nonmembers", "auxiliary"), rows, strict=True)
    return Game(
        Shield(model, *defenses, **settings),
        *(Examples(name, inputs, labels) for name, inputs in sets),
    )


def by_name(game: Game, attack: ClassInversion | None = None) -> dict[str, Finding]:
    outcome = (attack or ClassInversion())(game)
    return {one.name.removeprefix("class_inversion").strip("."): one for one in outcome.findings}


def test_every_search_finds_the_classes_of_a_bare_model(make_game) -> None:
    found = by_name(make_game())
    for way in WAYS:
        assert found[way].low > 0.5
        assert found[way].baseline < 0.3
        assert not found[way].note


@pytest.mark.parametrize("chain", [(sn.Round(1),), (sn.Confidence(4),), (sn.Label(),)], ids=str)
def test_rounding_stops_the_gradient_and_queries_revive_the_search(make_game, chain) -> None:
    found = by_name(make_game(*chain))
    assert found["gradient"].value == found["gradient"].baseline
    assert "a masked gradient, not privacy" in found["gradient"].note
    assert found["straight_through"].low > 0.5
    assert found["queries"].low > 0.5


def test_labels_alone_are_enough_for_queries(make_game) -> None:
    assert by_name(make_game(sn.Label(), release="labels"))["queries"].low > 0.5


def test_noise_is_averaged_by_the_population(make_game) -> None:
    with replayed_noise(0):
        found = by_name(make_game(sn.ClipNorm(10.0), sn.GaussianNoise(2.0)))
    assert found["queries"].low > 0.5


def test_a_constant_model_tells_nothing_of_its_classes(make_game) -> None:
    for one in by_name(make_game(model=Constant())).values():
        assert one.value == one.baseline
        assert one.note == "it never left its start"


def test_a_model_that_learned_nothing_tells_nothing(make_game) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    found = by_name(make_game(model=model))
    for one in found.values():
        assert one.low <= 0.1 <= one.high


def test_the_images_look_like_their_classes(make_game, digits_split) -> None:
    images = ClassInversion()(make_game(sn.Confidence(4))).features
    assert list(images) == [f"class image {label}" for label in range(10)]
    inputs, labels = digits_split.members
    assert {image.shape for image in images.values()} == {inputs.shape[1:]}
    means = torch.stack([inputs[labels == label].mean(0).flatten() for label in range(10)])
    drawn = torch.stack([image.flatten() for image in images.values()])
    nearest = torch.cdist(drawn, means).argmin(1)
    assert int((nearest == torch.arange(10)).sum()) >= 8


def test_searches_stay_within_the_range_of_the_adversarys_rows(make_game, digits_model) -> None:
    game = make_game(model=Recorder(digits_model))
    ClassInversion(steps=10)(game)
    assert game.shield.model.low >= -1e-6
    assert game.shield.model.high <= 1 + 1e-6


def test_without_a_gradient_only_queries_are_made_and_the_reason_is_given(
    make_game, digits_model
) -> None:
    outcome = ClassInversion()(make_game(model=WithoutGraph(digits_model)))
    names = [one.name for one in outcome.findings]
    assert names == ["class_inversion", "class_inversion.queries"]
    assert outcome.findings[0].low > 0.5
    (reason,) = outcome.untested
    assert "no gradient with respect to its input" in reason


def test_the_worst_is_the_headline_with_an_interval_for_all(make_game) -> None:
    found = by_name(make_game(sn.Round(1)), ClassInversion(steps=8))
    assert found[""].value == max(found[way].value for way in WAYS)
    assert found[""].samples == 10
    alone = proportion(found[""].value * 10, 10)
    assert found[""].low < alone.low


def test_each_adversary_is_named_by_what_it_holds_and_asks(make_game) -> None:
    found = by_name(make_game(), ClassInversion(steps=5, population=10))
    threats = {way: found[way].threat for way in WAYS}
    assert [threats[way].white_box for way in WAYS] == [True, True, False]
    assert [threats[way].queries for way in WAYS] == [11, 6, 56]
    assert threats["queries"].auxiliary == 850


def test_classes_of_a_table_are_found_and_drawn_in_its_shape() -> None:
    game = blobs(6, sn.Label())
    found = by_name(game)
    assert found["queries"].low > found["queries"].baseline
    images = ClassInversion(steps=2)(game).features
    assert [tuple(image.shape) for image in images.values()] == [(6,)] * 6


def test_of_many_classes_some_are_searched_and_the_rest_is_said() -> None:
    outcome = ClassInversion(steps=2)(blobs(25))
    assert outcome.findings[0].samples == 20
    assert len(outcome.features) == 10
    assert outcome.untested == ("class_inversion: 20 of 25 classes were searched",)


def test_the_global_seed_and_the_model_are_untouched(make_game, digits_model) -> None:
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in digits_model.state_dict().items()}
    ClassInversion(steps=3)(make_game(sn.Temperature(2.0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert not digits_model.training
    assert all(parameter.grad is None for parameter in digits_model.parameters())
    for name, value in digits_model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_same_seed_gives_the_same_findings(make_game) -> None:
    game = make_game(sn.RandomizedResponse(1.0))
    outcomes = []
    for _ in range(2):
        with replayed_noise(3):
            outcomes.append(ClassInversion(steps=5)(game))
    one, other = outcomes
    assert one.findings == other.findings
    for name, image in one.features.items():
        assert torch.equal(image, other.features[name])


def test_it_says_why_it_does_not_apply(make_game) -> None:
    game = make_game()
    rows = game.auxiliary.inputs
    with pytest.raises(NotApplicable, match="pass auxiliary"):
        ClassInversion()(replace(game, auxiliary=None))
    with pytest.raises(NotApplicable, match="needs labels"):
        ClassInversion()(replace(game, auxiliary=Examples("auxiliary", rows)))
    whole = Examples("auxiliary", (rows * 16).long(), game.auxiliary.labels)
    with pytest.raises(NotApplicable, match="int64 cannot be moved a little"):
        ClassInversion()(replace(game, auxiliary=whole))
    with pytest.raises(NotApplicable, match="the model gives embeddings"):
        ClassInversion()(make_game(outputs="embeddings"))
    few = Examples("auxiliary", rows[:12], game.auxiliary.labels[:12])
    with pytest.raises(NotApplicable, match="at least 40 rows of auxiliary, got 12"):
        ClassInversion()(replace(game, auxiliary=few))


@pytest.mark.parametrize("bad", [{"steps": 0}, {"restarts": 0}, {"population": 1}, {"pace": -1.0}])
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        ClassInversion(**bad)
