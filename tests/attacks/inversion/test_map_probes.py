"""By questions alone, maps are inverted further than the decoder that the search starts from."""

from dataclasses import replace

import pytest
import torch
from maps import SIDE, game_of
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Game, MapInversion, MapProbing
from shieldnet.attacks.adversary.map_decoders import Patches
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable


class Bends(nn.Module):
    """Answers without any gradient: two numbers a pixel, bent where the image is bright."""

    def forward(self, x: Tensor) -> Tensor:
        around = nn.functional.avg_pool2d(x, 3, stride=1, padding=1)
        return torch.cat([x + 2 * around.sin(), around - x.cos()], 1).detach()


class Same(Bends):
    """Answers the same about every image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(0 * x)


def found(attack: MapProbing | MapInversion, game: Game) -> sn.Finding:
    return attack(game).findings[0]


def test_the_search_reads_more_than_the_decoder_it_starts_from() -> None:
    asked = game_of(Bends(), rows=200)
    by_decoder = found(MapInversion(local=(Patches(),)), asked)
    by_search = found(MapProbing(pulls=(1e-3,)), asked)
    assert by_search.low > max(0.5, by_decoder.value)
    assert not by_search.threat.white_box
    assert by_search.threat.queries > 200


@pytest.mark.parametrize("chain", [(), (sn.Label(),)], ids=str)
def test_where_answers_say_nothing_it_finds_nothing(chain) -> None:
    finding = found(MapProbing(queries=32), game_of(Same(), *chain))
    assert finding.low <= 0 <= finding.high
    assert finding.value == 0


def test_noise_is_averaged_and_counted() -> None:
    quiet = found(MapProbing(queries=8, pulls=(0.1,)), game_of(Bends()))
    noisy = found(MapProbing(queries=8, pulls=(0.1,)), game_of(Bends(), sn.GaussianNoise(0.3)))
    assert noisy.threat.queries == 4 * (quiet.threat.queries - 1) + 1


def test_candidates_that_are_refused_are_passed_over() -> None:
    class Refuses(Bends):
        def forward(self, x: Tensor) -> Tensor:
            broken = (x.amax((1, 2, 3)) > 2.2).reshape(-1, 1, 1, 1)
            return super().forward(x).masked_fill(broken, torch.nan)

    whole = game_of(Bends())
    tame = {
        name: Examples(name, part.inputs.clamp(max=2.0), part.labels)
        for name in ("members", "nonmembers", "auxiliary")
        if (part := getattr(whole, name)) is not None
    }
    game = replace(whole, shield=sn.Shield(Refuses(), axis=1), **tame)
    assert 0 <= found(MapProbing(queries=16, pulls=(0.1,)), game).value <= 1


def test_what_it_does_not_read_is_refused() -> None:
    with pytest.raises(NotApplicable, match="one row an answer"):
        MapProbing()(replace(game_of(Bends()), extent=None))
    with pytest.raises(NotApplicable, match="auxiliary"):
        MapProbing()(replace(game_of(Bends()), auxiliary=None))
    with pytest.raises(sn.errors.ConfigError, match="queries"):
        MapProbing(queries=0)


def test_images_are_asked_about_in_their_own_form() -> None:
    shapes = set()

    class Notes(Bends):
        def forward(self, x: Tensor) -> Tensor:
            shapes.add((tuple(x.shape[1:]), x.dtype))
            return super().forward(x)

    found(MapProbing(queries=8, pulls=(0.1,)), game_of(Notes()))
    assert shapes == {((1, SIDE, SIDE), torch.float32)}
