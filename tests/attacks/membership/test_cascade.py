"""Shadows in stages find more, and nothing in a model that never saw the records."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.attacks import Game, Membership
from shieldnet.attacks.membership import cascade as cascading
from shieldnet.attacks.membership.cascade import LEAST_CHANCE, stages_of, train_cascade
from shieldnet.attacks.membership.scores import all_scores
from shieldnet.attacks.membership.shadows import ShadowPlan, train_shadows
from shieldnet.attacks.shadow_answers import Shadows
from shieldnet.core.statistics import auc
from shieldnet.data.examples import Examples

RECIPE = sn.Recipe(lambda: nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 4)), epochs=10)
STAGES = (8, 4, 4)
TRUTH = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))


def records(name: str, seed: int, rows: int = 150) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 30, generator=generator)
    noise = 4 * torch.randn(rows, 4, generator=generator)
    return Examples(name, inputs, (inputs @ TRUTH + noise).argmax(1))


def both(seed: int) -> dict[str, Examples]:
    return {name: records(name, seed + place) for place, name in enumerate(NAMES)}


NAMES = ("members", "nonmembers")
SETS = both(1)


def target(trained_on: Examples, seed: int = 0) -> sn.Shield:
    return sn.Shield(RECIPE((trained_on.inputs, trained_on.labels), seed))


def plan(shield: sn.Shield, **more) -> ShadowPlan:
    return ShadowPlan(RECIPE, 16, shield, **{**SETS, "copies": False, **more})


def _of(count: int, shield: sn.Shield, **more) -> ShadowPlan:
    return replace(plan(shield, **more), count=count)


@pytest.fixture(scope="module")
def learned() -> sn.Shield:
    return target(SETS["members"])


@pytest.fixture(scope="module")
def cascade(learned) -> Shadows:
    return train_cascade(plan(learned), STAGES, engine="inline")


def test_later_stages_train_on_what_seems_to_be_members(cascade) -> None:
    assert cascade.count == 16
    assert cascade.guided == 8
    assert cascade.how == "16 shadows trained by a recipe"
    drawn = {name: on.double().mean(1) for name, on in cascade.trained_on.items()}
    first, later = slice(0, 8), slice(8, None)
    assert abs(drawn["members"][first].mean() - drawn["nonmembers"][first].mean()) < 0.08
    assert drawn["members"][later].mean() > drawn["nonmembers"][later].mean() + 0.1


def test_the_first_stage_is_what_one_stage_would_be(cascade, learned) -> None:
    alone = train_shadows(_of(8, learned), engine="inline")
    assert torch.equal(cascade.independent.scores["members"], alone.scores["members"])
    assert cascade.independent.guided == 0


def test_the_cascade_finds_more_than_as_many_shadows_at_once() -> None:
    found = []
    for seed in range(2):
        sets = both(10 * seed + 1)
        shield = target(sets["members"], seed)
        wanted = plan(shield, **sets, seed=seed)
        plain = train_shadows(wanted, engine="inline")
        guided = train_cascade(wanted, STAGES, engine="inline")
        for shadows, name in ((plain, "LiRA"), (plain, "LiRA borrowing"), (guided, "cascade")):
            scored = all_scores(Game(shield, **sets, shadows=shadows), *sets.values(), 1)[name]
            found.append(auc(scored.members, scored.nonmembers).value)
    lira, borrowing, cascade = (np.mean(found[place::3]) for place in range(3))
    assert cascade > borrowing + 0.015 > lira + 0.02


def test_exchanged_sets_exchange_the_chances(learned) -> None:
    """The guesses come from answers: no set's name decides who trains a later shadow."""
    swapped = {
        "members": Examples("members", SETS["nonmembers"].inputs, SETS["nonmembers"].labels),
        "nonmembers": Examples("nonmembers", SETS["members"].inputs, SETS["members"].labels),
    }
    found = train_cascade(plan(learned, **swapped), STAGES, engine="inline")
    later = {name: on[8:].double().mean() for name, on in found.trained_on.items()}
    assert later["nonmembers"] > later["members"] + 0.1


def test_no_record_is_ever_sure_to_train_a_shadow(learned, monkeypatch) -> None:
    seen = []
    real = cascading.train_shadows

    def watched(plan: ShadowPlan, **more) -> Shadows:
        seen.append(plan.chances)
        return real(plan, **more)

    monkeypatch.setattr(cascading, "train_shadows", watched)
    train_cascade(_of(8, learned), (4, 4), engine="inline")
    assert seen[0] == {}
    chances = torch.cat(list(seen[1].values()))
    assert float(chances.min()) == pytest.approx(LEAST_CHANCE)
    assert float(chances.max()) == pytest.approx(1 - LEAST_CHANCE)


def test_every_engine_trains_the_same_cascade(cascade, learned) -> None:
    there = train_cascade(plan(learned), STAGES, engine="processes", workers=2)
    for name in cascade.scores:
        assert torch.equal(cascade.scores[name], there.scores[name])
        assert torch.equal(cascade.trained_on[name], there.trained_on[name])


@pytest.mark.parametrize("chain", [(), (sn.Label(),)], ids=str)
def test_a_cascade_around_a_target_that_saw_neither_set_raises_no_alarm(chain) -> None:
    alarms, values = 0, []
    for seed in range(3):
        sets = both(200 + 10 * seed)
        shield = sn.Shield(target(records("others", 90 + seed), seed).model, *chain)
        shadows = train_cascade(_of(8, shield, **sets, seed=seed), (4, 4), engine="inline")
        outcome = Membership()(Game(shield, **sets, shadows=shadows))
        found = {one.name: one for one in outcome.findings}
        alarms += found["membership.auc"].low > 0.5
        values.append(found["membership.cascade.auc"].value)
    assert alarms == 0
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)


def test_shadows_that_were_guided_are_no_targets_themselves(cascade, learned) -> None:
    """Their records follow the target's answers: they would betray what is pooled."""
    found = {one.name: one for one in Membership()(Game(learned, **SETS, shadows=cascade)).findings}
    assert found["membership.pooled.LiRA.auc"].threat.shadows == 6
    assert "membership.pooled.cascade.auc" not in found
    assert found["membership.cascade.auc"].threat.shadows == 16


def test_stages_are_a_half_and_two_quarters() -> None:
    assert stages_of(16) == (8, 4, 4)
    assert stages_of(19) == (11, 4, 4)
    assert sum(stages_of(64)) == 64
    with pytest.raises(sn.errors.ConfigError, match="at least 16 shadows for a cascade, got 15"):
        stages_of(15)
