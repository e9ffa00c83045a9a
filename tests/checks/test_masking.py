import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.attacks import Game
from shieldnet.checks import Masking
from shieldnet.core.randomness import replayed_noise
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable
from shieldnet.shield.module import Shield


def both(game: Game) -> tuple[sn.Finding, sn.Finding]:
    recovered, captum = Masking()(game).findings
    return recovered, captum


@pytest.mark.parametrize(
    "chain", [(sn.Round(1),), (sn.Round(2),), (sn.Confidence(4),), (sn.Label(),)], ids=str
)
def test_captum_reads_zero_where_queries_recover_the_gradient(make_game, chain) -> None:
    recovered, captum = both(make_game(*chain))
    assert captum.value == 0
    assert recovered.low > 0.9
    assert "a masked gradient, not privacy" in recovered.note


def test_captum_sees_through_what_has_a_gradient(make_game) -> None:
    recovered, captum = both(make_game(sn.Temperature(2.0)))
    assert captum.value > 0
    assert recovered.note == "Captum sees through this shield"


def test_a_zero_is_not_called_masked_where_queries_find_nothing() -> None:
    """A model whose scores hardly move has no gradient that plain queries could recover."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 6, generator=generator)
    model = nn.Linear(6, 3)
    model.weight.data = 1e-3 * torch.randn(3, 6, generator=generator)
    examples = Examples("nonmembers", rows)
    game = Game(Shield(model, sn.ClipNorm(1e-3), sn.GaussianNoise(5.0)), examples, examples)
    with replayed_noise(0):
        recovered, captum = both(game)
    assert captum.value == 0
    assert recovered.low <= 0
    assert recovered.note == "Captum reads 0; these queries recovered nothing, others may"


def test_the_bare_model_has_nothing_to_mask(make_game) -> None:
    with pytest.raises(NotApplicable, match="no defense that could mask"):
        Masking()(make_game())


def test_the_verdict_does_not_depend_on_the_units_of_a_pixel(make_game, digits_model) -> None:
    class Bytes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return digits_model(x / 255)

    game = make_game(sn.Round(1), model=Bytes())
    large = {
        name: Examples(name, 255 * getattr(game, name).inputs, getattr(game, name).labels)
        for name in ("members", "nonmembers")
    }
    recovered, captum = both(Game(game.shield, **large))
    assert captum.value == 0
    assert recovered.low > 0.9


def test_a_model_too_sure_to_have_a_gradient_does_not_apply(make_game, digits_model) -> None:
    class Sure(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return digits_model(x) * 1e6

    with pytest.raises(NotApplicable, match="its own gradient is 0"):
        Masking()(make_game(sn.Round(1), model=Sure()))
