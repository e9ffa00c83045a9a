from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks.adversary.decoders import KernelRidge, Network, Ridge
from shieldnet.attacks.base import Game
from shieldnet.attacks.extraction import Extraction, synthetic_queries
from shieldnet.core.errors import ConfigError
from shieldnet.core.randomness import replayed_noise
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, NotApplicable
from shieldnet.shield.module import Shield

QUICK = Extraction(students=(Ridge(), KernelRidge()))


class Hash(nn.Module):
    """Answers from a hash of the input: there is no rule that could be copied."""

    def forward(self, x: Tensor) -> Tensor:
        mixed = (x * torch.tensor([1.3, 2.7, 3.1, 4.9])).sum(1, keepdim=True)
        return (mixed * torch.arange(1.0, 4.0) * 1e4).sin() * 3


def rule() -> nn.Module:
    """Returns a model with a rule: three classes by two columns."""
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0, 0, 0], [0, 3.0, 0, 0], [-2.0, -2.0, 0, 0]]))
        model.bias.zero_()
    return model.eval()


def a_game(model: nn.Module, *defenses, rows: int = 300, **settings) -> Game:
    """Labels are the largest of the first three columns: not what ``rule`` says."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for name in ("members", "nonmembers", "auxiliary"):
        table = torch.randn(rows, 4, generator=generator)
        sets.append(Examples(name, table, table[:, :3].argmax(1)))
    return Game(Shield(model, *defenses, **settings), *sets)


def found_by(attack: Extraction, game: Game) -> dict[str, Finding]:
    with replayed_noise(0):
        return {finding.name: finding for finding in attack(game).findings}


def test_a_rule_is_copied_from_exact_answers() -> None:
    found = found_by(QUICK, a_game(rule()))
    fidelity = found["extraction.fidelity"]
    assert fidelity.value > 0.97
    assert fidelity.low > fidelity.baseline
    assert fidelity.samples == 300
    assert "answers about inputs of its own choice, owns 300 rows" in str(fidelity.threat)


def test_a_model_without_a_rule_is_not_copied() -> None:
    game = a_game(Hash())
    unlabeled = Examples("auxiliary", game.auxiliary.inputs)
    fidelity = found_by(QUICK, replace(game, auxiliary=unlabeled))["extraction.fidelity"]
    assert fidelity.low <= fidelity.baseline
    assert fidelity.value < 0.45


def test_answers_of_mere_noise_are_no_help() -> None:
    game = a_game(rule(), sn.ClipNorm(1.0), sn.GaussianNoise(1000.0))
    fidelity = found_by(QUICK, game)["extraction.fidelity"]
    assert fidelity.high < fidelity.baseline  # the labels alone would have told more
    assert fidelity.value < 0.45


def test_labels_alone_are_copied_less_well() -> None:
    exact, label = (
        found_by(QUICK, a_game(rule(), *chain))["extraction.fidelity"]
        for chain in ((), (sn.Label(),))
    )
    assert label.high < exact.value
    assert label.value > 0.85


def test_more_queries_copy_better() -> None:
    found = found_by(replace(QUICK, budgets=(200, 40, 1000)), a_game(rule(), sn.Label()))
    assert set(found) == {
        *("extraction.fidelity", "extraction.accuracy"),
        *("extraction.fidelity.40", "extraction.fidelity.200"),
    }
    few, more = found["extraction.fidelity.40"], found["extraction.fidelity.200"]
    assert few.value < more.value
    assert more.low > 0.8


def test_accuracy_is_counted_against_the_true_labels() -> None:
    game = a_game(rule())
    accuracy = found_by(QUICK, game)["extraction.accuracy"]
    right = (game.model_labels(game.nonmembers) == game.nonmembers.labels).double().mean()
    assert accuracy.value == pytest.approx(float(right), abs=0.03)
    assert accuracy.baseline > 0.9  # who owns labels needs no query to be right
    unlabeled = Examples("nonmembers", game.nonmembers.inputs)
    assert "extraction.accuracy" not in found_by(QUICK, replace(game, nonmembers=unlabeled))


def test_without_labels_the_baseline_is_the_commonest_label() -> None:
    game = a_game(rule())
    game = replace(game, auxiliary=Examples("auxiliary", game.auxiliary.inputs))
    common = game.model_labels(game.auxiliary).mode().values
    share = (game.model_labels(game.nonmembers) == common).double().mean()
    assert found_by(QUICK, game)["extraction.fidelity"].baseline == pytest.approx(float(share))


def test_networks_learn_too() -> None:
    found = found_by(Extraction(budgets=(), students=(Network(),)), a_game(rule()))
    assert found["extraction.fidelity"].value > 0.9
    assert found["extraction.fidelity"].source.startswith("Network")


def test_inputs_that_are_made_stay_in_range_and_differ() -> None:
    rows = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    new = synthetic_queries(rows, seed=0)
    assert new.inputs.shape == (150, 1, 4, 4)
    assert new.inputs.dtype == rows.dtype
    assert (new.inputs <= rows.amax(0)).all()
    assert (new.inputs >= rows.amin(0)).all()
    assert len(new.inputs.unique(dim=0)) == 150
    assert torch.equal(synthetic_queries(rows, seed=0).inputs, new.inputs)


def test_inputs_of_its_own_making_are_asked_about_where_they_help() -> None:
    """Labels of few rows: more of them show where the border lies."""
    game = a_game(rule(), sn.Label(), rows=101)
    found = found_by(Extraction(budgets=(100,), students=(KernelRidge(),)), game)
    assert found["extraction.fidelity"].source.endswith("404 queries")
    assert found["extraction.fidelity"].value > found["extraction.fidelity.100"].value + 0.03


def test_pictures_of_whole_numbers_are_read_and_tokens_are_not() -> None:
    game = a_game(rule())
    tokens = Examples("auxiliary", torch.randint(9, (60, 4)))
    with pytest.raises(NotApplicable, match="may be tokens"):
        QUICK(replace(game, auxiliary=tokens))

    class Bytes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return rule()(x.flatten(1).float() / 64 - 2)

    generator = torch.Generator().manual_seed(0)
    sets = [
        Examples(name, torch.randint(256, (200, 1, 2, 2), dtype=torch.uint8, generator=generator))
        for name in ("members", "nonmembers", "auxiliary")
    ]
    found = found_by(QUICK, Game(Shield(Bytes()), *sets))["extraction.fidelity"]
    assert found.value > 0.9
    assert found.source.endswith("200 queries")  # whole numbers are not moved a little


def test_where_it_does_not_fit_it_says_why() -> None:
    game = a_game(rule())
    with pytest.raises(NotApplicable, match="gives values"):
        QUICK(a_game(rule(), outputs="values"))
    with pytest.raises(NotApplicable, match="pass auxiliary"):
        QUICK(replace(game, auxiliary=None))
    few = Examples("auxiliary", game.auxiliary.inputs[:12])
    with pytest.raises(NotApplicable, match="at least 40 rows of auxiliary, got 12"):
        QUICK(replace(game, auxiliary=few))
    with pytest.raises(ConfigError, match="budget >= 40"):
        Extraction(budgets=(3,))


def test_the_same_seed_copies_the_same_and_the_global_seed_is_left_alone() -> None:
    games = [a_game(rule(), sn.Round(1)) for _ in range(2)]
    state = torch.get_rng_state()
    one, other = (found_by(QUICK, game) for game in games)
    assert one == other
    assert torch.equal(torch.get_rng_state(), state)
