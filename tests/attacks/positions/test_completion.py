"""Texts that a model recites are found, by the chances that are computed by hand."""

import math
from dataclasses import replace

import pytest
import torch
from language import LENGTH, VOCABULARY, Reciter, texts
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Game, TextExtraction
from shieldnet.attacks.positions.completion import _log_chances, exposure, require_completing
from shieldnet.core.errors import ConfigError
from shieldnet.data.examples import Canaries, Examples
from shieldnet.findings.finding import Finding, NotApplicable
from shieldnet.shield.module import Shield
from shieldnet.shield.settings import Extent

MEMBERS, NONMEMBERS = texts(60, seed=2), texts(60, seed=3)
CANARIES = Canaries(
    "out_of_distribution",
    Examples("canaries", torch.randint(VOCABULARY, (20, LENGTH))),
    Examples("held-out canaries", torch.randint(VOCABULARY, (63, LENGTH))),
)


def stage(model: nn.Module, *chain, **settings) -> Game:
    shield = Shield(model, *chain, axis=-1)
    sets = Examples("members", MEMBERS), Examples("nonmembers", NONMEMBERS)
    return Game(shield, *sets, extent=Extent(VOCABULARY, (LENGTH,)), **settings)


def verbatim(game: Game, **settings) -> Finding:
    findings = TextExtraction(**settings)(game).findings
    return next(one for one in findings if one.name == "extraction.verbatim")


@pytest.mark.parametrize("chain", [(), (sn.TopK(1), sn.Round(1)), (sn.Label(),)], ids=str)
def test_recited_texts_are_completed_behind_every_shield(chain) -> None:
    found = verbatim(stage(Reciter(MEMBERS, 0.9), *chain))

    assert found.value == 1.0
    assert found.low > 0.9
    assert found.baseline == 0.0


def test_a_model_that_recites_others_completes_none() -> None:
    found = verbatim(stage(Reciter(texts(60, seed=9), 0.9)))

    assert found.value == 0.0
    assert found.high < 0.1


def test_the_chance_is_that_of_independent_draws_in_several_tries() -> None:
    """Six tokens at p = 0.5 + 0.5 / 24 each: one try in 51."""
    game = stage(Reciter(MEMBERS, 0.5))
    once = (0.5 + 0.5 / VOCABULARY) ** 6
    enough = math.ceil(math.log(0.5) / math.log(1 - once))

    assert verbatim(game, temperatures=(1.0,), tries=enough).value == 1.0
    assert verbatim(game, temperatures=(1.0,), tries=enough - 1).value == 0.0
    assert verbatim(game, tries=1).source.endswith("at temperature 0, baseline: nonmembers")


def test_chances_at_temperatures_by_hand() -> None:
    p = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.8, 0.0]]], dtype=torch.float64)
    labels, wanted = torch.tensor([[0, 1]]), torch.tensor([[True, True]])

    found = _log_chances(p, labels, wanted, (0.0, 0.5, 1.0)).exp()

    sharp = 0.36 / (0.36 + 0.09 + 0.01) * 0.64 / (0.64 + 0.04)
    assert found[:, 0].tolist() == pytest.approx([1.0, sharp, 0.48])
    assert _log_chances(p, torch.tensor([[1, 2]]), wanted, (0.0, 1.0)).exp().sum() == 0
    first = _log_chances(p, labels, torch.tensor([[False, True]]), (1.0,)).exp()
    assert float(first) == pytest.approx(0.8)


def test_what_the_base_completes_is_said_beside() -> None:
    game = stage(Reciter(MEMBERS, 0.9))
    base = game.shield.with_model(Reciter(MEMBERS[:30], 0.9))

    assert "the base completes 0.500" in verbatim(replace(game, base=base)).note


class Both(nn.Module):
    """Reads the next token where it should not."""

    def forward(self, tokens: Tensor) -> Tensor:
        return 9.0 * nn.functional.one_hot(tokens.roll(-1, 1), VOCABULARY)


def test_a_model_that_reads_later_tokens_completes_nothing() -> None:
    with pytest.raises(NotApplicable, match="depend on later ones"):
        require_completing(stage(Both()))


def test_labels_that_are_no_next_tokens_complete_nothing() -> None:
    game = stage(Reciter(MEMBERS, 0.9))
    masked = replace(game, members=Examples("members", MEMBERS, MEMBERS.flip(1)))
    with pytest.raises(NotApplicable, match="only next tokens"):
        require_completing(masked)


def test_planted_canaries_stand_out_by_all_the_bits_that_there_are() -> None:
    game = stage(Reciter(CANARIES.planted.inputs, 0.9), canaries=CANARIES)
    found = next(
        one for one in TextExtraction()(game).findings if one.name == "extraction.exposure"
    )

    assert found.value == found.high == math.log2(64)
    assert 2.5 < found.low < 4
    assert found.baseline == pytest.approx(1.38, abs=0.05)


@pytest.mark.parametrize(("held_out", "is_tested"), [(30, False), (31, True)])
def test_exposure_is_not_tested_where_it_could_not_break_its_limit(held_out, is_tested) -> None:
    few = replace(CANARIES, held_out=CANARIES.held_out.shuffled(torch.arange(held_out)))
    outcome = TextExtraction()(stage(Reciter(CANARIES.planted.inputs, 0.9), canaries=few))

    assert ("extraction.exposure" in [one.name for one in outcome.findings]) == is_tested
    told = [line for line in outcome.untested if line.startswith("extraction.exposure")]
    assert is_tested or "31 canaries held out, there are 30" in told[0]
    assert is_tested or "plant_canaries(count=200)" in told[0]


def test_an_exposure_without_variation_has_an_exact_interval() -> None:
    generator = torch.Generator().manual_seed(0)
    planted, held_out = 10 + torch.arange(100.0), torch.linspace(-1, 1, 100)

    found = exposure(planted, held_out, 0.95, generator)
    assert found.value == found.high == math.log2(101)
    unseen = 1 - 0.0125 ** (1 / 100)  # of the canaries, and of texts before them
    assert found.low == pytest.approx((1 - unseen) * (math.log2(101) - math.log2(1 + 100 * unseen)))

    tied = exposure(torch.zeros(50), torch.zeros(50), 0.95, generator)
    assert tied.low < tied.value - 0.2 < tied.value + 0.2 < tied.high
    one = exposure(planted[:1], held_out, 0.95, generator)
    assert (one.low, one.high) == (pytest.approx(0, abs=0.1), math.log2(101))


@pytest.mark.parametrize("shift", [0.0, 2.0, 4.0])
def test_the_interval_of_an_exposure_holds_where_few_canaries_vary(shift) -> None:
    """Against the mean of many experiments of the same size."""
    generator = torch.Generator().manual_seed(1)

    def drawn() -> tuple[Tensor, Tensor]:
        return shift + torch.randn(12, generator=generator), torch.randn(40, generator=generator)

    ranks = [
        1 + (held.unsqueeze(1) > own).double().sum(0)
        for own, held in (drawn() for _ in range(2000))
    ]
    expected = math.log2(41) - float(torch.stack(ranks).log2().mean())
    intervals = [exposure(*drawn(), 0.95, generator) for _ in range(60)]
    assert sum(one.low <= expected <= one.high for one in intervals) >= 54


def test_exposure_is_at_chance_where_nothing_was_planted() -> None:
    generator = torch.Generator().manual_seed(0)
    chance = float((41 / torch.arange(1, 42)).log2().mean())
    held = 0
    for _ in range(40):
        scores = torch.randn(80, generator=generator)
        interval = exposure(scores[:40], scores[40:], 0.95, generator)
        held += interval.low <= chance <= interval.high
    assert held >= 34


def test_exposure_by_hand() -> None:
    planted, held_out = torch.tensor([5.0, 1.5, 0.0]), torch.tensor([1.0, 2.0, 3.0])

    found = exposure(planted, held_out, 0.95, torch.Generator())

    assert found.value == pytest.approx(sum(math.log2(4 / rank) for rank in (1, 3, 4)) / 3)


def test_settings_are_checked() -> None:
    for name, wrong in (
        *(("tries", 0), ("chance", 1.5), ("chance", 0), ("temperatures", (-1.0,))),
        *(("temperatures", ()), ("temperatures", 1.0), ("temperatures", "12")),
        *(("temperatures", (False,)), ("temperatures", (math.nan,))),
    ):
        with pytest.raises(ConfigError, match=f"Expected .*{name}"):
            TextExtraction(**{name: wrong})
