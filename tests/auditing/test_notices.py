"""Sets that were exchanged, or that are too small, are told in plain words."""

import pytest
import torch
from language import VOCABULARY, Writer
from torch import nn

import shieldnet as sn

DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(600, 20, generator=DRAW), torch.randint(0, 2, (600,), generator=DRAW)
EXCHANGED = "members and nonmembers may be exchanged: the model without a shield fits the nonmem"
NOTHING = "almost nothing was measured"
TIER = sn.Tier("few", (sn.attacks.Membership(), sn.attacks.Reidentification()))


def rows(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    return X[start:stop], Y[start:stop]


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))


@pytest.fixture(scope="module")
def overfitted() -> sn.Shield:
    return sn.harden(sn.finetune(network(0), rows(0, 100), epochs=200, seed=0).model)


def told(report: sn.Report, words: str) -> list[str]:
    return [note for note in report.notes() if words in note]


def test_members_and_nonmembers_that_are_exchanged_are_told(overfitted) -> None:
    wrong = sn.audit(
        overfitted, members=rows(100, 200), nonmembers=rows(0, 100), tier=TIER, shadows=0
    )
    assert len(told(wrong, EXCHANGED)) == 1
    assert EXCHANGED in wrong.untested[0]
    right = sn.audit(
        overfitted, members=rows(0, 100), nonmembers=rows(100, 200), tier=TIER, shadows=0
    )
    assert not told(right, EXCHANGED)


def test_sets_that_never_trained_the_model_are_not_called_exchanged() -> None:
    for seed in range(12):
        shield = sn.harden(network(seed))
        report = sn.audit(
            shield, members=rows(0, 300), nonmembers=rows(300, 600), tier=TIER, shadows=0
        )
        assert not told(report, "exchanged")
        assert NOTHING not in str(report)


@pytest.mark.parametrize("tier", ["quick", TIER])
def test_a_report_of_a_few_records_says_so_in_its_title(tier, overfitted, tmp_path) -> None:
    few = {"members": rows(0, 8), "nonmembers": rows(300, 308)}
    report = sn.audit(overfitted, **few, tier=tier, title="Release 7")
    assert report.title == f"Release 7: {NOTHING}"
    assert report.untested[0].startswith(
        f"{NOTHING}: no attack had enough to go on (8 members and 8 nonmembers, no auxiliary "
    )
    for name in ("report.md", "report.html"):
        report.save(tmp_path / name)
        assert f"Release 7: {NOTHING}" in (tmp_path / name).read_text()
    owned = sn.audit(overfitted, **few, auxiliary=rows(320, 600), tier=TIER)
    assert "reidentification" in {finding.name for finding in owned.findings}
    assert owned.title == f"Audit of Sequential: {NOTHING}", "eight records in a gallery"


def test_one_set_that_is_large_enough_for_an_attack_is_a_report(overfitted) -> None:
    report = sn.audit(
        overfitted,
        members=rows(0, 8),
        nonmembers=rows(100, 200),
        auxiliary=rows(200, 600),
        tier=TIER,
    )
    assert report.title == "Audit of Sequential"
    assert not told(report, NOTHING)


@pytest.mark.parametrize(("filled", "is_told"), [(0.5, True), (0.05, False)])
def test_tokens_that_may_be_padding_are_named(filled, is_told) -> None:
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(1, VOCABULARY, (120, 6), generator=generator)
    texts[torch.rand(120, generator=generator) < filled, 3:] = 0
    sets = dict(zip(("members", "nonmembers"), texts.split(60), strict=True))
    shield = sn.harden(Writer().eval(), axis=-1)
    nothing = sn.Tier("nothing", ())
    report = sn.audit(shield, **sets, tier=nothing, engine="inline")
    assert bool(told(report, "name it: padding=0")) == is_told
    named = sn.audit(shield, **sets, tier=nothing, engine="inline", padding=0)
    assert not told(named, "name it: padding")


def test_shadows_are_announced_where_they_are_trained_alone(caplog) -> None:
    texts = torch.randint(1, VOCABULARY, (80, 6), generator=torch.Generator().manual_seed(0))
    sets = dict(zip(("members", "nonmembers"), texts.split(40), strict=True))
    tier = sn.Tier("members", (sn.attacks.SequenceMembership(),), shadows=4)
    with caplog.at_level("INFO", "shieldnet"):
        sn.audit(sn.harden(Writer().eval(), axis=-1), **sets, tier=tier, engine="inline")
    assert "shadows" not in caplog.text


def test_a_model_that_reads_the_tokens_it_is_held_to_is_told() -> None:
    class BothWays(Writer):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return super().forward(tokens) + super().forward(tokens.flip(1)).flip(1)

    texts = torch.randint(1, VOCABULARY, (80, 6), generator=torch.Generator().manual_seed(0))
    sets = dict(zip(("members", "nonmembers"), texts.split(40), strict=True))
    words = "Pass labels of the tokens that are masked"
    for model, count in ((BothWays(), 1), (Writer(), 0)):
        shield = sn.harden(model.eval(), axis=-1)
        report = sn.audit(shield, **sets, tier=sn.Tier("nothing", ()), engine="inline")
        assert len(told(report, words)) == count
