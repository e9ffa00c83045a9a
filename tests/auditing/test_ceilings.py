from dataclasses import replace

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.auditing.ceilings import with_ceilings
from shieldnet.findings.finding import Finding, Threat

GUARANTEE = sn.Guarantee(
    *(4.0, 1.0, 16, 100, 1e-5), scope="weights", run="0" * 32, premises=("the start is public",)
)


def finding(name: str) -> Finding:
    return Finding(name, 0.6, 0.55, 0.65, 100, 0.5, Threat(), "a test")


@pytest.fixture(scope="module")
def audited():
    """Trains privately among canaries and audits the model."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 12, generator=generator)
    labels = inputs[:, :3].argmax(1)
    planted = sn.plant_canaries((inputs[:300], labels[:300]), count=60)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))
    private = sn.DPSGD(2.0, 1e-3, canaries=200)
    found = sn.finetune(
        model, planted.data, private, epochs=30, learning_rate=0.5, seed=0, start="public"
    )
    report = sn.audit(
        sn.harden(found.model),
        members=planted.members,
        nonmembers=(inputs[300:400], labels[300:400]),
        auxiliary=(inputs[400:], labels[400:]),
        canaries=planted,
        finetuned=found,
        tier="quick",
        shadows=0,
    )
    return found, report


def test_membership_is_bounded_by_the_training_and_nothing_else_is() -> None:
    names = {
        "membership.auc": GUARANTEE.auc(),
        "membership.LiRA.auc": GUARANTEE.auc(),
        "membership.tpr_at_fpr_1e-2": GUARANTEE.distinguish(1e-2),
        "membership.canaries.tpr_at_fpr_1e-3": GUARANTEE.distinguish(1e-3),
        "membership.pooled.auc": None,
        "membership.blind": None,
        "inversion": None,
    }
    found = with_ceilings([finding(name) for name in names], GUARANTEE, 1)
    assert {one.name: one.ceiling for one in found} == names
    assert with_ceilings([finding("membership.canaries.auc")], GUARANTEE, 8)[0].ceiling is None
    assert with_ceilings([finding("membership.auc")], None, 1)[0].ceiling is None


def test_the_report_holds_the_claim_beside_what_was_measured(audited) -> None:
    found, report = audited
    assert report.guarantee == found.guarantee
    names = [one.name for one in report.findings]
    assert {"one_run.epsilon", "one_run.mu", "one_run.records.epsilon"} <= set(names)
    assert report["shield"]["one_run.records.epsilon"].ceiling == found.guarantee.epsilon
    assert report["bare"]["membership.auc"].ceiling == found.guarantee.auc()
    assert not any(one.crosses_proof for one in report.findings)
    assert "training: epsilon 2.00 at delta 0.001, proven." in str(report)


def test_the_claim_is_saved_and_comes_back(audited, tmp_path) -> None:
    _, report = audited
    report.save(tmp_path / "report.json")
    assert sn.Report.load(tmp_path / "report.json").guarantee == report.guarantee
    report.save(tmp_path / "report.html")
    assert "epsilon 2.00 at delta 0.001, proven" in (tmp_path / "report.html").read_text()


def test_a_policy_limits_epsilon(audited) -> None:
    _, report = audited
    report.require(sn.Policy({"max_epsilon": 2.0}))
    with pytest.raises(sn.errors.PolicyFailed, match=r"max_epsilon = 1, the guarantee states 2.00"):
        report.require(sn.Policy({"max_epsilon": 1.0}))
    with pytest.raises(sn.errors.PolicyFailed, match="no guarantee of the training was given"):
        replace(report, guarantee=None).require(sn.Policy({"max_epsilon": 1.0}))


def test_a_guarantee_of_steps_bounds_nothing_that_the_model_says(audited) -> None:
    _, report = audited
    steps = replace(GUARANTEE, scope="steps")
    assert with_ceilings([finding("membership.auc")], steps, 1)[0].ceiling is None
    with pytest.raises(sn.errors.PolicyFailed, match="steps only"):
        replace(report, guarantee=steps).require(sn.Policy({"max_epsilon": 100.0}))


def test_a_report_says_what_is_taken_for_granted_and_that_a_file_was_unsigned(audited) -> None:
    _, report = audited
    assert "assumed: the starting weights" in str(report)
    assert "unsigned" not in str(report)
    read = replace(report.guarantee, seal="unsigned")
    assert "the guarantee is unsigned" in str(replace(report, guarantee=read))


def test_a_report_says_that_the_signature_of_a_guarantee_was_checked(audited, monkeypatch) -> None:
    _, report = audited
    checked = "the signature of the guarantee was checked with the key in SHIELDNET_KEY."
    assert checked not in str(report), "it was made here"
    monkeypatch.setenv("SHIELDNET_KEY", "ab" * 16)
    read = sn.Guarantee.read(report.guarantee.document())
    told = str(replace(report, guarantee=read))
    assert checked in told
    assert "unsigned" not in told
    monkeypatch.delenv("SHIELDNET_KEY")
    unread = sn.Guarantee.read(read.document())
    assert checked not in str(replace(report, guarantee=unread))


def test_a_measured_bound_above_the_claim_fails_every_policy(audited) -> None:
    _, report = audited
    low = replace(GUARANTEE, noise_multiplier=1e4, steps=1)
    shield = report.subjects[-1]
    wrong = replace(shield, findings=with_ceilings([finding("membership.auc")], low, 1))
    with pytest.raises(
        sn.errors.PolicyFailed, match="the defense, the accountant or the attack is wrong"
    ):
        replace(report, subjects=(wrong,)).require(sn.Policy({"max_bits_per_answer": 100}))


def test_what_is_no_training_is_refused(linear) -> None:
    data = torch.randn(30, 6), torch.arange(30) % 4
    other = torch.randn(30, 6), torch.arange(30) % 4
    with pytest.raises(sn.errors.ConfigError, match="Expected finetuned as finetune returns it"):
        sn.audit(sn.harden(linear), members=data, nonmembers=other, finetuned=3)


def test_a_guarantee_is_about_its_own_weights(audited, linear) -> None:
    found, _ = audited
    data = torch.randn(30, 6), torch.arange(30) % 4
    other = torch.randn(30, 6), torch.arange(30) % 4
    for claimed in (found, found.guarantee):
        with pytest.raises(sn.errors.ConfigError, match="The guarantee is of other weights"):
            sn.audit(sn.harden(linear), members=data, nonmembers=other, finetuned=claimed)
