"""With the model in hand, maps are inverted further than decoders of few images reach."""

from dataclasses import replace

import pytest
import torch
from maps import SIDE, game_of
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Game, MapInversion, MapSearch
from shieldnet.attacks.adversary.map_decoders import Patches
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, NotApplicable
from shieldnet.shield.settings import Extent


class Mixes(nn.Module):
    """Answers with neighboring pixels mixed, bent and mixed again."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(6, 1, 3, 3, generator=generator) / 2)
        self.second = nn.Parameter(torch.randn(4, 6, 3, 3, generator=generator) / 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed = nn.functional.conv2d(x, self.first, padding=1)
        bent = mixed + 1.5 * mixed.sin()
        return nn.functional.conv2d(bent, self.second, padding=1)


class Same(Mixes):
    """Answers the same about every image, by way of its gradient as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(0 * x)


def game(model: nn.Module, *chain: sn.Defense) -> Game:
    return replace(game_of(model, *chain), extent=Extent(4, (SIDE, SIDE)))


def found(attack: MapSearch | MapInversion, game: Game) -> Finding:
    return attack(game).findings[0]


@pytest.mark.parametrize(
    ("chain", "least"), [((), 0.9), ((sn.Round(1),), 0.5), ((sn.Label(),), 0.05)], ids=str
)
def test_the_search_reads_more_than_the_decoder_it_starts_from(chain, least) -> None:
    asked = game(Mixes(), *chain)
    by_decoder = found(MapInversion(local=(Patches(),)), asked)
    by_search = found(MapSearch(pulls=(1e-2,)), asked)
    assert by_search.low > max(least, by_decoder.value)
    assert by_search.threat.white_box


def test_where_answers_say_nothing_it_finds_nothing() -> None:
    finding = found(MapSearch(pulls=(1e-2,), steps=5), game(Same()))
    assert finding.low <= 0 <= finding.high
    assert abs(finding.value) < 0.02


def test_what_has_no_gradient_is_refused() -> None:
    class Numpy(Mixes):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(NotApplicable, match="no gradient"):
        MapSearch()(game(Numpy()))
    whole = game(Mixes())
    tokens = Examples("nonmembers", torch.randint(0, 5, (60, 8)))
    with pytest.raises(NotApplicable, match="have no gradient"):
        MapSearch()(replace(whole, nonmembers=tokens))
    with pytest.raises(NotApplicable, match="one row an answer"):
        MapSearch()(replace(whole, extent=None))


def test_the_model_and_its_gradients_stay_as_they_are() -> None:
    model = Mixes()
    before = [weight.clone() for weight in model.parameters()]
    MapSearch(pulls=(1e-2,), steps=2)(game(model))
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert all(weight.grad is None for weight in model.parameters())
