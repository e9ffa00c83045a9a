"""No kind of answer is released that has not met a learned and a searching attacker."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from language import VOCABULARY, Writer
from maps import Shows
from maps import sets as maps
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Attack
from shieldnet.attacks.adversary.decoders import Ridge
from shieldnet.attacks.adversary.map_decoders import Patches
from shieldnet.auditing.plan import TIERS
from shieldnet.outputs.layout import MODEL_KINDS

ROWS = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
SETS = dict(zip(("members", "nonmembers", "auxiliary"), ROWS.split((40, 60, 100)), strict=True))
SMALL = {"decoders": (Ridge(),), "queries": 40, "steps": 2, "pulls": (0.1,)}
"""Settings that make an attack short, whatever it is; the number of answers stays one."""

CASES: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, Any]]] = {
    "logits": (lambda rows: rows[:, :3], {}),
    "probabilities": (lambda rows: rows[:, :3].softmax(1), {"outputs": "probabilities"}),
    "labels": (lambda rows: rows[:, :3], {"release": "labels"}),
    "binary_logits": (lambda rows: rows[:, 0], {"outputs": "binary_logits"}),
    "binary_probabilities": (
        lambda rows: rows[:, :1].sigmoid(),
        {"outputs": "binary_probabilities"},
    ),
    "values": (lambda rows: rows[:, 0], {"outputs": "values"}),
    "embeddings": (lambda rows: rows[:, :3], {"outputs": "embeddings"}),
}
"""How a model answers, and the settings of its Shield."""


class Answers(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.answers, _ = CASES[kind]

    def forward(self, rows: Tensor) -> Tensor:
        return self.answers(rows)


def made_short(attack: Attack) -> Attack:
    small = {one.name: SMALL[one.name] for one in fields(attack) if one.name in SMALL}
    if attack.learns:
        small.pop("queries")  # of each row: another finding
    return replace(attack, **small)


def test_every_kind_of_a_model_and_labels_are_among_the_cases() -> None:
    assert {*MODEL_KINDS, "labels"} <= CASES.keys()


@pytest.mark.parametrize("tier", ["standard", "full"])
def test_tiers_have_both(tier) -> None:
    assert any(attack.learns for attack in TIERS[tier].attacks)
    assert any(attack.searches for attack in TIERS[tier].attacks)


@pytest.mark.parametrize("kind", CASES)
def test_a_learned_and_a_searching_attacker_report_on(kind) -> None:
    attacks = [
        one
        for one in TIERS["standard"].attacks
        if (one.learns or one.searches) and not one.at_positions
    ]
    shield = sn.Shield(Answers(kind), **CASES[kind][1])
    tier = sn.Tier("both", tuple(map(made_short, attacks)))
    report = sn.audit(shield, **SETS, tier=tier, shadows=0, engine="inline")
    found = {finding.name for finding in report.findings}
    learned, searched = (
        {
            metric.name
            for attack in attacks
            if getattr(attack, way)
            for metric in type(attack).metrics
        }
        for way in ("learns", "searches")
    )
    assert found & learned - searched, report.untested
    assert found & searched - learned, report.untested
    assert "inversion.search" in found, report.untested  # by asking alone, without the weights


def test_both_read_texts() -> None:
    attacks = [one for one in TIERS["standard"].attacks if one.at_positions]
    assert sn.attacks.PromptInversion.learns
    assert sn.attacks.PromptInversion.searches
    tokens = torch.randint(0, VOCABULARY, (200, 4), generator=torch.Generator().manual_seed(0))
    sets = dict(zip(SETS, tokens.split((40, 60, 100)), strict=True))
    short = tuple(
        replace(one, tokens=2, texts=10)
        for one in attacks
        if isinstance(one, sn.attacks.PromptInversion)
    )
    shield = sn.harden(Writer().eval(), axis=-1)
    report = sn.audit(shield, **sets, tier=sn.Tier("prompts", short), engine="inline")
    assert "prompts.exact" in {finding.name for finding in report.findings}


def test_both_read_maps() -> None:
    assert sn.attacks.MapInversion.learns
    assert sn.attacks.MapSearch.searches
    assert sn.attacks.MapProbing.searches
    few = (
        sn.attacks.MapInversion(flat=(Ridge(),), local=(Patches(),)),
        sn.attacks.MapSearch(),
        sn.attacks.MapProbing(queries=8, pulls=(0.1,)),
    )
    shield = sn.Shield(Shows().eval(), axis=1)
    report = sn.audit(shield, **maps(), tier=sn.Tier("maps", few), engine="inline")
    found = {finding.name for finding in report.findings}
    wanted = {"inversion.map", "white_box.inversion.map", "inversion.search.map"}
    assert wanted <= found, report.untested


def test_no_reference_classifiers_stand_for_shadows_of_an_encoder() -> None:
    shield = sn.Shield(Answers("embeddings"), outputs="embeddings")
    tier = sn.Tier("members", (sn.attacks.Membership(),), shadows=4)
    report = sn.audit(shield, **SETS, tier=tier, engine="inline")
    reason = "reference models are classifiers, the model gives embeddings: pass train=..."
    assert f"membership with shadow models: {reason}" in report.untested
    assert any(finding.name == "membership.auc" for finding in report.findings)
