from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks.attributes import AttributeInference, AttributeRecovery
from shieldnet.attacks.base import Game
from shieldnet.attacks.guesses import Guesses, learned
from shieldnet.attacks.secrets import Secret
from shieldnet.core.errors import DataError
from shieldnet.core.randomness import replayed_noise
from shieldnet.data.examples import Examples, as_examples
from shieldnet.findings.finding import Finding, NotApplicable
from shieldnet.shield.module import Shield

COLUMNS = ("age", "income", "sex", "job=none", "job=blue", "job=white")
NEEDS_SEX = (0.5, 0.8, 1.0, 0.3, -0.2, 0.6)
NEEDS_SEX_LESS = (0.5, 0.8, 0.3, 0.3, -0.2, 0.6)
IGNORES_SEX = (0.5, 0.8, 0.0, 0.3, -0.2, 0.6)


def people(rows: int, seed: int) -> Tensor:
    """Draws a table whose sex and job depend on age a little."""
    generator = torch.Generator().manual_seed(seed)
    age, income, luck, other = torch.randn(4, rows, generator=generator)
    sex = (0.5 * age + luck > 0).float()
    job = torch.bucketize(0.7 * age + other, torch.tensor([-0.5, 0.5]))
    return torch.cat([torch.stack([age, income, sex], 1), torch.eye(3)[job]], 1)


def linear_model(weights: tuple[float, ...], classes: int = 2) -> nn.Module:
    model = nn.Linear(len(weights), classes)
    with torch.no_grad():
        steps = torch.arange(classes) - (classes - 1) / 2
        model.weight.copy_(steps.unsqueeze(1) * torch.tensor(weights))
        model.bias.zero_()
    return model.eval()


class Turned(nn.Module):
    """Answers income with the sign of the sex: no sum of columns tells the sex."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 1] * (2 * x[:, 2] - 1), x[:, 0]], 1)


def a_game(model: nn.Module, *defenses, sensitive=("sex",), rows: int = 300, **settings) -> Game:
    tables = [people(rows, seed) for seed in range(3)]
    sets = [
        Examples(name, table, (table[:, 1] > 0).long())
        for name, table in zip(("members", "nonmembers", "auxiliary"), tables, strict=True)
    ]
    return Game(Shield(model, *defenses, **settings), *sets, columns=COLUMNS, sensitive=sensitive)


def found_by(attack, game: Game) -> dict[str, Finding]:
    with replayed_noise(0):
        return {finding.name: finding for finding in attack(game).findings}


def test_one_exact_answer_gives_the_column_away_where_the_model_needs_it() -> None:
    found = found_by(AttributeRecovery(), a_game(linear_model(NEEDS_SEX)))
    assert found["attribute.sex"].value > 0.999
    assert found["attribute.sex"].baseline < 0.8
    assert found["attribute.sex.gain"].low > 0.2
    assert found["attribute.sex"].samples == 300
    assert "sees 1 answer about each example and all its" in str(found["attribute.sex"].threat)


def test_nothing_is_gained_from_a_model_that_ignores_the_column() -> None:
    found = found_by(AttributeRecovery(), a_game(linear_model(IGNORES_SEX)))
    gain = found["attribute.sex.gain"]
    assert gain.low <= 0 <= gain.high
    assert abs(gain.value) < 0.02


def test_coarser_answers_tell_less() -> None:
    model = linear_model(NEEDS_SEX_LESS)
    chains = ((sn.Round(3),), (sn.Round(1),), (sn.Label(),))
    fine, coarse, label = (
        found_by(AttributeRecovery(), a_game(model, *chain))["attribute.sex"] for chain in chains
    )
    assert fine.low > coarse.high
    assert coarse.low > label.high
    assert label.value > label.baseline  # the label still tells those near the border


def test_the_imputation_is_kept_where_answers_are_mere_noise() -> None:
    game = a_game(linear_model(NEEDS_SEX), sn.ClipNorm(1.0), sn.GaussianNoise(1000.0))
    gain = found_by(AttributeRecovery(), game)["attribute.sex.gain"]
    assert gain.low <= 0 <= gain.high
    assert gain.value > -0.02
    assert gain.note.endswith("found no use for the answers")


def test_candidates_are_asked_about_often_behind_noise(monkeypatch) -> None:
    def value() -> float:
        game = a_game(linear_model(NEEDS_SEX), sn.ClipNorm(4.0), sn.GaussianNoise(0.25))
        return found_by(AttributeRecovery(), game)["attribute.sex"].value

    often = value()
    monkeypatch.setattr("shieldnet.attacks.base.MAX_QUERIES", 1)
    assert often > value() + 0.03
    assert often > 0.9


def test_a_prefix_stands_for_a_group_of_columns() -> None:
    game = a_game(linear_model(NEEDS_SEX), sensitive=("job",))
    found = found_by(AttributeRecovery(), game)
    assert found["attribute.job"].value > 0.99
    assert found["attribute.job"].baseline < 0.7
    assert "over 3 values" in found["attribute.job"].note
    assert found["attribute.job.gain"].value == pytest.approx(
        found["attribute.job"].value - found["attribute.job"].baseline
    )


def test_one_column_of_a_one_hot_group_is_not_sought_by_itself() -> None:
    """The others tell it exactly: a gain of 0 was filed as evidence that nothing leaks."""
    game = a_game(linear_model(NEEDS_SEX), sensitive=("sex", "job=blue"))
    outcome = AttributeRecovery()(game)
    assert outcome.untested == ("job=blue: the other columns of job tell it: name the group, job",)
    assert {one.name.split(".")[1] for one in outcome.findings} == {"sex"}
    names = ("age", "income", "sex", "job_none", "job_blue", "job_white")
    with pytest.raises(NotApplicable, match="name the group, job"):
        AttributeRecovery()(replace(game, columns=names, sensitive=("job_blue",)))


def test_of_a_column_of_many_values_the_half_is_sought() -> None:
    game = a_game(linear_model(NEEDS_SEX), sensitive=("income",))
    secret = Secret.of(game, "income")
    assert len(secret.candidates) == 10
    assert secret.truth(game.auxiliary.inputs).double().mean() == pytest.approx(0.5, abs=0.01)
    found = found_by(AttributeRecovery(), game)
    assert found["attribute.income"].value > 0.99
    assert 0.4 < found["attribute.income"].baseline < 0.6


def test_numbers_of_a_regression_give_columns_away_too() -> None:
    game = a_game(linear_model(NEEDS_SEX, classes=2), outputs="values")
    assert found_by(AttributeRecovery(), game)["attribute.sex"].value > 0.999


@pytest.mark.parametrize("chain", [(), (sn.RoundTo(0.5),)], ids=str)
def test_the_target_of_a_regression_gives_a_column_away_where_the_model_needs_it(chain) -> None:
    game = a_game(Turned(), *chain, outputs="values")
    generator = torch.Generator().manual_seed(3)
    sets = {}
    for one in (game.members, game.nonmembers, game.auxiliary):
        noise = 0.1 * torch.randn(len(one), 2, generator=generator)
        targets = game.shield.bare()(one.inputs).detach() + noise
        sets[one.name] = replace(one, labels=targets, has_targets=True)
    found = found_by(AttributeInference(), replace(game, **sets))
    assert found["attribute_inference.sex"].value > 0.85
    assert found["attribute_inference.sex.gain"].low > 0.1
    blurred = {
        name: replace(one, labels=torch.randn(len(one), 2, generator=generator))
        for name, one in sets.items()
    }
    nothing = found_by(AttributeInference(), replace(game, **blurred))
    assert nothing["attribute_inference.sex.gain"].low <= 0


def test_a_table_of_one_column_is_imputed_by_its_commonest_value() -> None:
    game = a_game(linear_model((1.0,)))
    alone = {
        one.name: Examples(one.name, one.inputs[:, 2:3])
        for one in (game.members, game.nonmembers, game.auxiliary)
    }
    found = found_by(AttributeRecovery(), replace(game, columns=("sex",), **alone))
    assert found["attribute.sex"].baseline == 0.5
    assert found["attribute.sex"].value == 1


def test_rows_with_a_value_that_was_never_seen_are_left_out() -> None:
    game = a_game(linear_model(NEEDS_SEX))
    strange = game.nonmembers.inputs.clone()
    strange[:10, 2] = 7.0
    game = replace(game, nonmembers=replace(game.nonmembers, inputs=strange))
    assert found_by(AttributeRecovery(), game)["attribute.sex"].samples == 290


@pytest.fixture(scope="module")
def memorizer() -> tuple[nn.Module, Tensor, Tensor]:
    """Returns a network that learned random labels by heart, with what it learned."""
    table = people(300, 0)
    labels = torch.randint(2, (300,), generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 256), nn.ReLU(), nn.Linear(256, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(table), labels).backward()
        optimizer.step()
    return model.eval(), table, labels


def with_random_labels(model: nn.Module, table: Tensor, labels: Tensor) -> Game:
    game = a_game(model)
    generator = torch.Generator().manual_seed(1)
    others = {
        name: Examples(name, one.inputs, torch.randint(2, (len(one),), generator=generator))
        for name, one in (("nonmembers", game.nonmembers), ("auxiliary", game.auxiliary))
    }
    return replace(game, members=Examples("members", table, labels), **others)


def test_columns_of_members_are_inferred_from_a_model_that_learned_them_by_heart(memorizer) -> None:
    found = found_by(AttributeInference(), with_random_labels(*memorizer))
    assert found["attribute_inference.sex.gain"].low > 0
    assert found["attribute_inference.sex.members_over_nonmembers"].low > 0
    assert found["attribute_inference.sex"].threat.queries == 2


def test_members_that_the_model_never_saw_are_like_nonmembers(memorizer) -> None:
    model, _, labels = memorizer
    strangers = with_random_labels(model, people(300, 9), labels.flip(0))
    found = found_by(AttributeInference(), strangers)
    difference = found["attribute_inference.sex.members_over_nonmembers"]
    assert difference.low <= 0 <= difference.high
    assert found["attribute_inference.sex.gain"].low <= 0


def test_what_the_model_knows_of_everybody_is_no_memory_of_members() -> None:
    """The label is income's sign, turned around by sex: a linear imputation is blind to it."""

    class TurnedAround(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = 4 * x[:, 1] * (1 - 2 * x[:, 2])
            return torch.stack([-score, score], 1)

    game = a_game(TurnedAround())
    sets = {
        one.name: replace(one, labels=TurnedAround()(one.inputs).argmax(1))
        for one in (game.members, game.nonmembers, game.auxiliary)
    }
    found = found_by(AttributeInference(), replace(game, **sets))
    assert found["attribute_inference.sex.gain"].low > 0.2
    difference = found["attribute_inference.sex.members_over_nonmembers"]
    assert difference.low <= 0 <= difference.high


def test_what_the_label_tells_without_the_model_is_no_gain() -> None:
    """The label is the income's sign, and the imputation knows it."""
    game = a_game(linear_model(IGNORES_SEX), sensitive=("sex", "income"))
    found = found_by(AttributeInference(), game)
    assert found["attribute_inference.income"].baseline > 0.95
    for name in ("sex", "income"):
        gain = found[f"attribute_inference.{name}.gain"]
        assert gain.low <= 0.01
        assert gain.value < 0.02


def test_an_unknown_column_is_refused_with_those_that_there_are() -> None:
    game = a_game(linear_model(NEEDS_SEX), sensitive=("gender",))
    with pytest.raises(DataError, match="no column gender. The columns are: age, income, sex, j"):
        AttributeRecovery()(game)


def test_columns_that_overlap_are_no_group() -> None:
    game = replace(a_game(linear_model(NEEDS_SEX), sensitive=("a",)), columns=(*"xyz", *"abc"))
    assert found_by(AttributeRecovery(), game)  # one column by that very name
    overlapping = replace(game, columns=("a_1", "a_2", *"wxyz"))
    with pytest.raises(NotApplicable, match="exactly one of the 2 columns of a"):
        AttributeRecovery()(overlapping)


def test_too_few_rows_are_refused() -> None:
    game = a_game(linear_model(NEEDS_SEX))
    few = replace(game, auxiliary=Examples("auxiliary", game.auxiliary.inputs[:12]))
    with pytest.raises(NotApplicable, match="at least 40 rows of auxiliary, got 12"):
        AttributeRecovery()(few)


def test_a_column_with_one_value_is_untested_and_spoils_no_other() -> None:
    game = a_game(linear_model(NEEDS_SEX), sensitive=("age", "sex"))
    table = game.auxiliary.inputs.clone()
    table[:, 2] = 0
    game = replace(game, auxiliary=Examples("auxiliary", table))
    outcome = AttributeRecovery()(game)
    assert outcome.untested == ("sex: it has one value only in the auxiliary data",)
    assert {finding.name for finding in outcome.findings} == {"attribute.age", "attribute.age.gain"}
    with pytest.raises(NotApplicable, match="sex: it has one value only"):
        AttributeRecovery()(replace(game, sensitive=("sex",)))


def test_where_it_does_not_fit_it_says_why(make_game) -> None:
    game = a_game(linear_model(NEEDS_SEX))
    texts = as_examples({"input_ids": torch.zeros(60, 8, dtype=torch.int64)}, "nonmembers")
    of_texts = replace(game, sensitive=(), nonmembers=texts)
    cases = (
        (AttributeRecovery(), make_game(), "a table"),
        (AttributeRecovery(), replace(game, sensitive=()), "name the columns: sensitive="),
        (AttributeRecovery(), of_texts, "^texts have no columns$"),
        (AttributeRecovery(), replace(game, auxiliary=None), "pass auxiliary"),
        (
            AttributeInference(),
            a_game(Turned(), outputs="embeddings"),
            "gives embeddings",
        ),
        (
            AttributeInference(),
            replace(game, auxiliary=Examples("auxiliary", game.auxiliary.inputs)),
            r"^it needs labels: pass auxiliary=\(inputs, labels\)",
        ),
    )
    for attack, one, reason in cases:
        with pytest.raises(NotApplicable, match=reason):
            attack(one)


def test_the_same_seed_finds_the_same_and_the_global_seed_is_left_alone() -> None:
    games = [a_game(linear_model(NEEDS_SEX_LESS), sn.Round(1)) for _ in range(2)]
    state = torch.get_rng_state()
    one, other = (found_by(AttributeRecovery(), game) for game in games)
    assert one == other
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_learned_of_a_row_never_saw_that_row() -> None:
    """Sixty useless numbers for each of a hundred rows: a model that saw them would be sure."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(150, 60, generator=generator).double()
    truth = torch.randint(2, (100,), generator=generator)
    log_p = learned(lambda w, rows: table[rows] @ w.reshape(-1, 2), 120, truth, 150, seed=0)
    right = log_p.gather(1, torch.cat([truth, truth[:50]]).unsqueeze(1)).exp().squeeze(1)
    assert log_p.shape == (150, 2)
    assert float(right[:100].mean()) < 0.55


def test_the_gain_is_the_difference_of_the_measures() -> None:
    generator = torch.Generator().manual_seed(0)
    for values in (2, 5):
        truth = torch.randint(values, (200,), generator=generator)
        imputed, noise = torch.randn(2, 200, values, generator=generator)
        attacked = noise + torch.eye(values)[truth]
        guesses = Guesses(truth, imputed, attacked)
        value, again = guesses.gains(seed=0)
        expected = guesses.measured(attacked).value - guesses.measured(imputed).value
        assert value == pytest.approx(expected)
        assert abs(again.mean() - value) < 0.01
        assert again.std() > 0.01
