"""Noise at positions is averaged away: what single answers hide, means of many tell."""

from dataclasses import replace

import pytest
import torch
from language import LENGTH, VOCABULARY, Story, story
from maps import Nudges, Remembers, Shows, game_of, sets, squares
from torch import nn

import shieldnet as sn
from shieldnet.attacks import (
    Game,
    MapInversion,
    MapMembership,
    PositionAveraging,
    SequenceMembership,
)
from shieldnet.attacks.adversary.decoders import Ridge
from shieldnet.attacks.adversary.map_decoders import Patches
from shieldnet.attacks.positions.averaging import AveragedShield, averaged
from shieldnet.attacks.positions.readings import readings_of
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, NotApplicable
from shieldnet.shield.settings import Extent

QUICK = MapInversion(flat=(Ridge(),), local=(Patches(),))
NOISY = (sn.GaussianNoise(20.0),)


def found(game: Game, attack: object) -> dict[str, Finding]:
    return {finding.name: finding for finding in attack(game).findings}


@pytest.fixture(scope="module")
def written() -> Story:
    return story(rows=200, steps=200)


def texts_game(written: Story, model: nn.Module, *chain: sn.Defense, base: bool = False) -> Game:
    parts = (Examples("members", written.members), Examples("nonmembers", written.nonmembers))
    shield = sn.Shield(model, *chain, axis=-1)
    own = shield.with_model(written.base) if base else None
    return Game(shield, *parts, extent=Extent(VOCABULARY, (LENGTH,)), base=own)


def test_images_are_read_from_the_means_of_noisy_maps() -> None:
    game = game_of(Shows(), sn.GaussianNoise(5.0), rows=200)
    once = found(game, QUICK)["inversion.map"]
    often = found(game, PositionAveraging(256, 2**27, QUICK))["averaging.map.256"]
    assert often.low > once.high + 0.1
    assert often.threat.queries == 256


def test_members_are_told_by_the_means_of_noisy_maps() -> None:
    game = game_of(Remembers(*sets()["members"]), sn.GaussianNoise(100.0))
    once = found(game, MapMembership())["membership.maps.auc"]
    often = found(game, PositionAveraging(256, 2**27, QUICK))["membership.maps.averaged.256"]
    assert often.low > max(once.value, 0.75)


@pytest.mark.parametrize("base", [False, True])
def test_members_are_told_by_the_means_of_noisy_texts(written, base) -> None:
    chain = (sn.GaussianNoise(60.0),)
    game = texts_game(written, written.model, *chain, base=base)
    once = found(game, SequenceMembership())["membership.sequences.auc"]
    often = found(game, PositionAveraging(256, 2**27, QUICK))
    assert set(often) == {"membership.sequences.averaged.256"}
    assert often["membership.sequences.averaged.256"].low > max(once.value, 0.6)


def test_a_model_that_saw_neither_set_raises_no_alarm(written) -> None:
    alarms = 0
    for seed in range(5):
        game = game_of(Nudges(*squares(60, 100 + seed)), *NOISY, seed=seed)
        often = found(game, PositionAveraging(16, reading=QUICK))["membership.maps.averaged.16"]
        alarms += often.low > 0.5
    game = texts_game(written, written.base, *NOISY)
    often = found(game, PositionAveraging(16, reading=QUICK))["membership.sequences.averaged.16"]
    assert alarms + (often.low > 0.5) <= 1


@pytest.mark.parametrize("release", [None, "probabilities"])
def test_means_come_near_what_the_model_says(release) -> None:
    game = game_of(Shows(), sn.GaussianNoise(1.0), release=release)
    bare = readings_of(game_of(Shows()), game.nonmembers)
    many = readings_of(averaged(game, 1000), game.nonmembers)
    assert float((bare.log_p - many.log_p).abs().median()) < 0.06
    assert torch.equal(
        readings_of(averaged(game, 10), game.nonmembers).log_p.isfinite(), bare.counted
    )


def test_the_model_answers_once_and_cut_batches_are_asked_whole() -> None:
    calls = []

    class Counts(Shows):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    whole = sn.Shield(Counts(), sn.GaussianNoise(1.0), axis=1)
    cut = sn.Shield(Counts(), sn.GaussianNoise(1.0), axis=1, micro_batch=16)
    images = sets()["members"][0]
    for shield in (whole, cut):
        shield(images)
    calls.clear()
    assert AveragedShield(whole, 5, 2, "p")(images).shape == (60, 8, 8, 2)
    assert calls == [60]
    calls.clear()
    assert AveragedShield(cut, 5, 2, "p")(images).shape == (60, 8, 8, 2)
    assert sum(calls) == 5 * 60


def test_large_answers_are_asked_for_less_often_or_not_at_all() -> None:
    game = game_of(Shows(), *NOISY)
    each = 3 * 60 * 64 * 2  # of three sets
    often = found(game, PositionAveraging(numbers=5 * each, reading=QUICK))
    assert set(often) == {"averaging.map.5", "membership.maps.averaged.5"}
    with pytest.raises(NotApplicable, match=r"4 answers about all records are 92,160 numbers"):
        PositionAveraging(numbers=4 * each - 1)(game)


@pytest.mark.parametrize(
    ("chain", "release", "means"),
    [
        ((sn.GaussianNoise(1.0),), None, "logits"),
        ((sn.GaussianNoise(1.0),), "probabilities", "log p"),
        ((sn.GaussianNoise(1.0), sn.Label()), None, "p"),
        ((sn.RandomizedResponse(1.0),), None, "p"),
    ],
    ids=str,
)
def test_means_are_taken_of_what_the_noise_was_added_to(chain, release, means) -> None:
    shield = averaged(game_of(Shows(), *chain, release=release), 2).shield
    assert isinstance(shield, AveragedShield)
    assert shield.means == means


class Offset(nn.Module):
    """Shows the image in what all logits of a pixel have in common, which softmax takes away."""

    def forward(self, x):
        return torch.cat([3 * x - 1, 3 * x + 1], 1)


def test_logits_say_more_than_their_softmax_in_the_mean_too() -> None:
    game = game_of(Offset(), sn.GaussianNoise(8.0), rows=150)
    often = found(game, PositionAveraging(64, reading=QUICK))["averaging.map.64"]
    assert often.low > 0.3


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_means_of_many_answers_tell_no_less_than_one(scale) -> None:
    class Sure(Shows):
        def forward(self, x):
            return 100 * super().forward(x)

    game = game_of(Sure(), sn.GaussianNoise(scale), rows=100)
    once = found(game, QUICK)["inversion.map"]
    often = found(game, PositionAveraging(64, reading=QUICK))["averaging.map.64"]
    assert often.high >= once.low


def test_r2_counts_what_is_released_and_not_the_models_own_labels() -> None:
    """These are the baseline of the leakage; behind much noise nobody has them."""
    drowned = found(game_of(Shows(), sn.GaussianNoise(500.0), rows=100), QUICK)
    assert drowned["inversion.map"].low <= 0
    assert drowned["r2.inversion.map"].high < 0.1
    assert "released winners" not in drowned["r2.inversion.map"].note
    labels = found(game_of(Shows(), sn.Label(), rows=100), QUICK)
    assert labels["r2.inversion.map"].low > 0.3
    assert labels["r2.inversion.map"].note == "all of it from the released winners"


def test_a_model_that_tells_the_label_alone_raises_no_alarm() -> None:
    class Tells(Shows):
        def forward(self, x):
            return super().forward(x).sign()

    alarms = 0
    for seed in range(6):
        game = game_of(Tells(), sn.GaussianNoise(5.0), seed=seed)
        often = found(game, PositionAveraging(8, reading=QUICK))["averaging.map.8"]
        alarms += often.low > 0.01
    assert alarms <= 1


def test_where_it_does_not_fit_it_says_so(written) -> None:
    with pytest.raises(NotApplicable, match="the same answer every time"):
        PositionAveraging()(game_of(Shows(), sn.Round(1)))
    with pytest.raises(sn.errors.ConfigError, match="queries"):
        PositionAveraging(queries=1)
    of_texts = PositionAveraging(queries=2)(texts_game(written, written.model, *NOISY))
    assert "averaging at positions, inversion: texts are read token by" in of_texts.untested[0]
    alone = replace(game_of(Shows(), *NOISY), auxiliary=None)
    of_maps = PositionAveraging(queries=2)(alone)
    assert "averaging at positions, inversion: it needs auxiliary data" in of_maps.untested[0]
