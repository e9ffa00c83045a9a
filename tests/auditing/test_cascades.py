"""An audit trains shadows in stages where one shield is judged, and says where it does not."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.attacks import Membership
from shieldnet.auditing.plan import TIERS, Plan
from shieldnet.auditing.runner import NO_CASCADE

RECIPE = sn.Recipe(lambda: nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4)), epochs=8)
TIER = sn.Tier("staged", (Membership(),), shadows=16, cascade=True)


def records(seed: int, rows: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 20, generator=generator)
    return inputs, torch.randint(0, 4, (rows,), generator=generator)


SETS = {"members": records(1), "nonmembers": records(2)}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return RECIPE(SETS["members"], 0)


def audited(shield, **more) -> sn.Report:
    return sn.audit(shield, **{**SETS, "train": RECIPE, "tier": TIER, "engine": "inline", **more})


def findings(report: sn.Report) -> list[tuple[str, str, float]]:
    return [
        (subject.name, finding.name, finding.value)
        for subject in report.subjects
        for finding in subject.findings
    ]


def test_the_cascade_follows_the_one_shield_that_is_judged(model, tmp_path) -> None:
    noisy = sn.Shield(model, sn.ClipNorm(20.0), sn.GaussianNoise(2.0))
    first = audited(noisy, cache=tmp_path)
    for subject in first.subjects:
        assert subject["membership.cascade.auc"].threat.shadows == 16
        assert NO_CASCADE not in subject.untested
    assert findings(audited(noisy, cache=tmp_path)) == findings(first)


def test_with_several_shields_all_shadows_are_drawn_blindly_and_the_report_says_so(model) -> None:
    report = audited({"one": sn.harden(model), "two": sn.Shield(model, sn.Label())})
    for subject in report.subjects:
        assert NO_CASCADE in subject.untested
        assert "membership.cascade.auc" not in {finding.name for finding in subject.findings}


@pytest.mark.parametrize(
    "changed", [{"shadows": 8}, {"tier": replace(TIER, cascade=False)}, {"train": None}], ids=str
)
def test_there_is_no_cascade_of_few_shadows_nor_of_other_networks(model, changed) -> None:
    settings = {"tier": TIER, "train": RECIPE, "engine": "inline", **changed}
    plan = Plan.of(**settings).for_shields({"bare": sn.Shield(model)})
    assert plan.stages == (plan.shadows,)


def test_a_plan_counts_the_jobs_of_every_stage(model) -> None:
    shields = {"bare": sn.Shield(model), "shield": sn.harden(model)}
    plan = Plan.of("standard", train=RECIPE).for_shields(shields)
    assert plan.stages == (8, 4, 4)
    assert plan.shadow_jobs == 3
    own = Plan.of("full", train=lambda data, seed: model).for_shields(shields)
    assert own.stages == (32, 16, 16)
    assert own.shadow_jobs == 64


def test_values_and_embeddings_have_no_cascade(model) -> None:
    shield = sn.Shield(model, outputs="embeddings", axis=-1)
    plan = Plan.of(TIER, train=RECIPE).for_shields({"bare": shield})
    assert plan.stages == (16,)


def test_the_tiers_that_take_their_time_use_it() -> None:
    assert [TIERS[name].cascade for name in ("quick", "standard", "full")] == [False, True, True]
