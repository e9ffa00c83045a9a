"""Membership of a regression's records: by what is missing to their targets."""

from dataclasses import replace

import pytest
import torch
from regressions import Linear, least_squares
from torch import Tensor

import shieldnet as sn
from shieldnet.attacks import Game, Membership, OneRun
from shieldnet.attacks.membership.blind import blind_finding
from shieldnet.attacks.membership.likelihood import lira, lira_by_pull
from shieldnet.attacks.membership.references import value_recipe
from shieldnet.attacks.membership.residuals import Residuals, quarters, residual_scores
from shieldnet.attacks.membership.shadows import ShadowPlan, train_shadows
from shieldnet.core.errors import DataError
from shieldnet.core.statistics import auc
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable

COLUMNS = 40
COARSE = (sn.ClipRange(-12.0, 12.0), sn.RoundTo(6.0))


def drawn(name: str, seed: int, rows: int = 100, outputs: int = 1) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, COLUMNS, generator=generator)
    weight = torch.randn(COLUMNS, outputs, generator=torch.Generator().manual_seed(9))
    targets = inputs @ weight + 5 * torch.randn(rows, outputs, generator=generator)
    return Examples(name, inputs, targets, has_targets=True)


def played(*chain: sn.Defense, outputs: int = 1, null: bool = False) -> Game:
    names = ("members", "nonmembers", "auxiliary")
    sets = {name: drawn(name, seed, outputs=outputs) for seed, name in enumerate(names)}
    learned = drawn("others", 7, outputs=outputs) if null else sets["members"]
    shield = sn.Shield(least_squares((learned.inputs, learned.labels), 0), outputs="values")
    shadows = train_shadows(ShadowPlan(least_squares, 8, shield, **sets), engine="inline")
    return Game(sn.Shield(shield.model, *chain, outputs="values"), **sets, shadows=shadows)


def aucs(game: Game) -> dict[str, float]:
    scores = residual_scores(game, game.members, game.nonmembers, 1)
    return {name: auc(one.members, one.nonmembers).value for name, one in scores.items()}


@pytest.fixture(scope="module")
def bare() -> Game:
    return played()


def test_every_score_finds_records_that_pull_their_answers(bare) -> None:
    found = aucs(bare)
    assert set(found) == {
        *("loss", "moved copies", "quantile", "LiRA", "LiRA by pull", "LiRA offline"),
        *("RMIA", "RMIA offline", "moved copies against shadows", "ensemble"),
    }
    assert min(found.values()) > 0.57
    assert found["LiRA by pull"] > 0.68
    assert found["LiRA by pull"] > found["LiRA"] - 0.01


@pytest.mark.parametrize("chain", [(), COARSE, (sn.ClipRange(-9, 9), sn.GaussianNoise(3.0))])
def test_a_model_that_saw_neither_set_has_no_members(chain) -> None:
    found = aucs(played(*chain, null=True))
    assert 0.4 < min(found.values()) < max(found.values()) < 0.6


def test_moved_copies_read_through_a_coarse_rounding() -> None:
    found = aucs(played(*COARSE))
    assert "symbols" in found
    assert found["moved copies against shadows"] > found["LiRA by pull"] + 0.03


def test_exchanged_sets_give_one_less_the_auc(bare) -> None:
    """Whatever unit was taken of one set alone would tell it from the other."""
    for game in (bare, replace(bare, auxiliary=None)):
        exchanged = residual_scores(game, game.nonmembers, game.members, 1)
        for name, scores in residual_scores(game, game.members, game.nonmembers, 1).items():
            back = exchanged[name]
            given, turned = (auc(one.members, one.nonmembers).value for one in (scores, back))
            assert given == pytest.approx(1 - turned, abs=1e-6), name


def test_units_are_of_the_auxiliary_rows_or_of_both_sets(bare) -> None:
    def unit(*sets: Examples) -> Tensor:
        missed = torch.cat([one.labels - bare.ask(one).distribution for one in sets])
        return missed.double().abs().mean(0) * (torch.pi / 2) ** 0.5

    members, nonmembers = bare.members, bare.nonmembers
    assert torch.allclose(Residuals.of(bare, 1).unit, unit(bare.auxiliary))
    pooled = replace(bare, auxiliary=None)
    assert torch.allclose(Residuals.of(pooled, 1).unit, unit(members, nonmembers))
    unlabeled = replace(bare, auxiliary=replace(bare.auxiliary, labels=None))
    assert torch.allclose(Residuals.of(unlabeled, 1).unit, unit(members, nonmembers))


def test_several_outputs_count_together_and_each_by_itself() -> None:
    game = played(outputs=3)
    found = aucs(game)
    assert {"largest residual", *(f"loss of output {number}" for number in range(3))} <= set(found)
    assert found["LiRA by pull"] > 0.8
    worst = Membership()(game).findings[0]
    assert (worst.name, worst.value) == ("membership.auc", pytest.approx(max(found.values())))


def test_groups_are_quarters_of_the_targets_of_both_sets(bare) -> None:
    groups = list(quarters(bare))
    assert [group.name for group in groups] == [
        f"quarter {number} of the targets" for number in (1, 2, 3, 4)
    ]
    for side in ("members", "nonmembers"):
        assert (sum(getattr(group, side).int() for group in groups) == 1).all()
    assert [int(group.members.sum() + group.nonmembers.sum()) for group in groups] == [50] * 4
    lowest = bare.members.labels[groups[0].members.unsqueeze(1)]
    assert lowest.max() < torch.cat([bare.members.labels, bare.nonmembers.labels]).median()


def test_the_unit_of_a_target_changes_nothing(bare) -> None:
    """Dollars and cents are one target."""
    cents = {
        one.name: replace(one, labels=one.labels * 100)
        for one in (bare.members, bare.nonmembers, bare.auxiliary)
    }
    model = Linear(bare.shield.model.weight.detach() * 100)
    of_cents = Game(sn.Shield(model, outputs="values"), **cents)
    first, second = aucs(replace(bare, shadows=None)), aucs(of_cents)
    assert first == pytest.approx(second, abs=2e-3)


def test_one_law_for_all_records_needs_few_shadows() -> None:
    """With four shadows the mean of two answers says little of one record."""
    generator = torch.Generator().manual_seed(0)
    records, shadows = 4000, 4
    without = 2 * torch.randn(records, generator=generator)
    trained_on = torch.rand(shadows, records, generator=generator) < 0.5
    is_member = torch.rand(records, generator=generator) < 0.5

    def residuals(trained: Tensor) -> Tensor:
        center = torch.where(trained, 0.6 * without, without)
        return center + 0.3 * torch.randn(center.shape, generator=generator)

    target, others = residuals(is_member), residuals(trained_on)
    values = {}
    for attack in (lira, lira_by_pull):
        scores = attack(target, others, trained_on)
        values[attack] = auc(scores[is_member], scores[~is_member]).value
    assert values[lira_by_pull] > values[lira] + 0.01


@pytest.mark.parametrize(
    "targets",
    [
        torch.full((60,), 3.0),
        torch.arange(60) % 5,
        torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).div(1e-3).exp().clamp(max=9),
        1e6 + torch.rand(60, generator=torch.Generator().manual_seed(0)),
    ],
    ids=["constant", "whole", "heavy", "far off"],
)
def test_reference_regressors_answer_in_the_targets_own_unit(targets) -> None:
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    rows = [torch.arange(60)]
    (model,) = value_recipe(inputs, targets, rows).models(inputs, targets, rows, [0])
    answers = model(inputs)
    wide = targets.reshape(60, -1).float()
    assert answers.shape == wide.shape
    off = (answers - wide).square().mean()
    assert off <= (wide - wide.mean(0)).square().mean() + 1e-2


def test_references_stand_for_the_target_and_are_named(bare) -> None:
    sets = {one.name: one for one in (bare.members, bare.nonmembers, bare.auxiliary)}
    plan = ShadowPlan(None, 8, bare.shield, **sets)
    shadows = train_shadows(plan, engine="inline")
    assert shadows.weaker
    assert shadows.scores["members"].shape == (8, 100, 1)
    assert aucs(replace(bare, shadows=shadows))["RMIA offline"] > 0.57


def test_sets_whose_targets_differ_are_told_without_the_model() -> None:
    fair = [drawn(name, seed, rows=300) for seed, name in enumerate(("members", "nonmembers"))]
    assert blind_finding(*fair, seed=0).low <= 0.5
    moved = replace(fair[1], labels=fair[1].labels + 30)
    assert blind_finding(fair[0], moved, seed=0).low > 0.5
    generator = torch.Generator().manual_seed(3)
    noise = 40 * torch.randn(300, 1, generator=generator)
    harder = blind_finding(fair[0], replace(fair[1], labels=fair[1].labels + noise), seed=0)
    assert harder.low > 0.5
    assert "how hard their targets are" in harder.source


def test_what_cannot_be_scored_is_refused(bare) -> None:
    with pytest.raises(NotApplicable, match=r"it needs labels: pass members=\(inputs, labels\)"):
        Membership()(replace(bare, members=replace(bare.members, labels=None)))
    wide = replace(bare.members, labels=bare.members.labels.expand(-1, 2))
    with pytest.raises(DataError, match="Expected targets of the members as wide as the model's"):
        Membership()(replace(bare, members=wide))


def test_canaries_of_a_regression_are_found_and_guessed(bare) -> None:
    far = drawn("far", 11, rows=120)
    planted = sn.plant_canaries((far.inputs, far.labels), count=60)
    members = Examples("members", *planted.members, has_targets=True)
    shield = sn.Shield(least_squares(planted.data, 0), outputs="values")
    game = Game(shield, members, bare.nonmembers, bare.auxiliary, canaries=planted.canaries)
    found = {one.name: one.value for one in Membership()(game).findings}
    assert found["membership.canaries.auc"] > 0.6
    guarantee = sn.Guarantee(
        *(4.0, 1.0, 16, 100, 1e-5), scope="weights", run="0" * 32, premises=("the start is public",)
    )
    (guessed,) = OneRun()(replace(game, guarantee=guarantee)).findings
    assert guessed.name == "one_run.records.epsilon"
