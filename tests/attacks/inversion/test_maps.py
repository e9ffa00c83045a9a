"""Maps are inverted beyond their labels: all of an image that is shown, nothing of labels alone."""

from dataclasses import replace

import pytest
import torch
from maps import SIDE, Shows, game_of, squares
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Game, MapInversion
from shieldnet.attacks.adversary.map_decoders import MapNetwork, Patches, standardized
from shieldnet.attacks.inversion import map_answers
from shieldnet.core.errors import ConfigError
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, NotApplicable
from shieldnet.findings.reading import BY_WINNERS
from shieldnet.shield.settings import Extent

QUICK = MapInversion(local=(Patches(), MapNetwork(width=8, steps=30)))


LOCAL = MapInversion(local=(Patches(),))


def found(game: Game, attack: MapInversion = LOCAL) -> dict[str, Finding]:
    return {finding.name: finding for finding in attack(game).findings}


def test_an_image_that_is_shown_is_found_and_less_of_it_behind_rounding() -> None:
    leakage = {
        str(chain): found(game_of(Shows(), *chain), QUICK)["inversion.map"]
        for chain in ((), (sn.Round(1),), (sn.Confidence(2),))
    }
    bare, rounded, binned = leakage.values()
    assert bare.low > 0.9
    assert bare.value > rounded.value > binned.value
    assert rounded.low > 0.3


@pytest.mark.parametrize("chain", [(sn.Label(),), (sn.Coarsen(2), sn.Label())], ids=str)
def test_labels_alone_give_no_more_away_than_the_labels(chain) -> None:
    finding = found(game_of(Shows(), *chain))["inversion.map"]
    assert (finding.value, finding.low, finding.high) == (0, 0, 0)
    assert finding.note == BY_WINNERS


def test_coarser_maps_give_less_away_over_the_mean_image() -> None:
    over_mean = [
        found(game_of(Shows(), *chain))["r2.inversion.map"].value
        for chain in ((), (sn.Coarsen(2),), (sn.Coarsen(8),))
    ]
    assert over_mean[0] > over_mean[1] > over_mean[2]


class Hashes(nn.Module):
    """Its winners say where squares are; how sure it is says nothing that is learned."""

    def forward(self, x: Tensor) -> Tensor:
        sign = (x - 0.5).sign()
        sure = 2 + (1e5 * x.sum((1, 2, 3), keepdim=True)).sin() + (3e4 * x).sin()
        return torch.cat([-sign * sure, sign * sure], 1)


@pytest.mark.parametrize("seed", range(3))
def test_confidence_that_says_nothing_is_not_read(seed) -> None:
    finding = found(game_of(Hashes(), seed=seed))["inversion.map"]
    assert finding.low <= 0.01
    assert abs(finding.value) < 0.03


def test_one_constant_guess_that_beats_another_by_a_hair_is_no_leak() -> None:
    class Deaf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(20280)
            return torch.randn(2, SIDE, SIDE, generator=generator).expand(len(x), -1, -1, -1)

    finding = MapInversion()(game_of(Deaf(), seed=20280)).findings[1]
    assert finding.name == "r2.inversion.map"
    assert finding.low == 0 <= finding.high


def test_maps_of_another_size_than_the_image_are_read() -> None:
    class Small(Shows):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.avg_pool2d(x, 2))

    game = replace(game_of(Small(), rows=200), extent=Extent(2, (SIDE // 2, SIDE // 2)))
    assert found(game)["inversion.map"].low > 0.1


def test_several_decisions_about_a_table_are_inverted_as_well() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 6, generator=generator)
    model = nn.Linear(4, 6)
    model.weight.data, model.bias.data = weight.T.contiguous(), torch.zeros(6)
    rows = torch.randn(240, 4, generator=generator)
    names = ("members", "nonmembers", "auxiliary")
    parts = [Examples(name, part) for name, part in zip(names, rows.split(80), strict=True)]
    leakage = [
        found(Game(shield, *parts, extent=Extent(2, (6,))))["inversion.map"]
        for shield in (
            sn.Shield(model, outputs="binary_logits"),
            sn.Shield(model, sn.Round(1), outputs="binary_logits"),
            sn.Shield(model, outputs="binary_logits", release="labels"),
        )
    ]
    assert leakage[0].low > 0.95
    assert leakage[0].value > leakage[1].value > leakage[2].value == 0


def test_the_order_of_the_targets_and_of_the_members_changes_nothing() -> None:
    game = game_of(Shows(), sn.Confidence(4))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    moved = replace(game, nonmembers=game.nonmembers.shuffled(order), members=game.auxiliary)
    first, second = (found(one)["inversion.map"].value for one in (game, moved))
    assert first == pytest.approx(second, abs=1e-6)


@pytest.mark.parametrize("rows", [1, 39])
def test_too_few_images_are_refused(rows) -> None:
    with pytest.raises(NotApplicable, match="needs at least 40 rows"):
        LOCAL(game_of(Shows(), rows=rows))


def test_answers_too_large_for_memory_are_refused_with_what_fits(monkeypatch) -> None:
    monkeypatch.setattr(map_answers, "_MAX_NUMBERS", 1000)
    with pytest.raises(NotApplicable, match="128 numbers about 64 is too large: 25 fit"):
        LOCAL(game_of(Shows()))


def test_answers_of_one_row_are_refused() -> None:
    game = replace(game_of(Shows()), extent=None)
    with pytest.raises(NotApplicable, match="one row an answer"):
        LOCAL(game)


def test_constant_images_are_refused() -> None:
    game = game_of(Shows())
    same = Examples("auxiliary", torch.ones(60, 1, SIDE, SIDE))
    with pytest.raises(NotApplicable, match="nothing varies"):
        LOCAL(replace(game, auxiliary=same))


def test_patches_find_a_convolution_and_the_global_seed_stays() -> None:
    images, _ = squares(40, 0)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    blurred = nn.functional.conv2d(images, torch.full((1, 1, 3, 3), 1 / 9), padding=1)
    learned, unseen = standardized(images[:30], images[30:], (SIDE, SIDE))
    center = blurred[:30].mean(0)
    guess = Patches(side=3).predict(learned, blurred[:30] - center, unseen) + center
    assert torch.allclose(guess, blurred[30:], atol=5e-3)
    MapNetwork(width=4, steps=2).predict(learned, blurred[:30] - center, unseen)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_inversion_without_decoders_is_refused() -> None:
    with pytest.raises(ConfigError, match="a decoder at least"):
        MapInversion(local=())
