"""A finding is declared where it is measured; gate, comparison, charts and evidence read that."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from by_hand import finding, made, subject

import shieldnet as sn
from shieldnet.attacks import ATTACKS, Attack, Game, Timing
from shieldnet.auditing.plan import TIERS, Tier
from shieldnet.checks import CHECKS
from shieldnet.core.statistics import Interval
from shieldnet.findings.finding import Finding, Outcome, Threat
from shieldnet.findings.metrics import Limit, Metric
from shieldnet.gate.declared import declared
from shieldnet.reports.evidence import ITEMS
from shieldnet.reports.html.charts.drawing import charts

DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Toy(Attack):
    """Finds everything, always."""

    metrics = (
        Metric(
            "toy.told",
            "told by a toy",
            "more",
            Limit("max_toy", 0.1, "what a toy tells"),
            standards=("AISVS 11.1.3", "AML.T0024.001"),
            headline=True,
        ),
    )
    name: str = "toy.told"

    def __call__(self, game: Game) -> Outcome:
        found = Finding.of(
            self.name,
            Interval(1.0, 0.99, 1.0),
            samples=len(game.nonmembers),
            baseline=0.0,
            threat=Threat(),
            source="a toy",
        )
        return Outcome(findings=(found,))


@dataclass(frozen=True)
class Nameless(Attack):
    """Declares nothing."""

    def __call__(self, game: Game) -> Outcome:
        return Outcome()


def audited(attack: Attack) -> sn.Report:
    torch.manual_seed(0)
    shield = sn.harden(torch.nn.Linear(4, 3))
    members, nonmembers = (torch.randn(60, 4), torch.arange(60) % 3), torch.randn(60, 4)
    tier = Tier("toy", (attack,))
    return sn.audit(shield, members=members, nonmembers=nonmembers, tier=tier)


@pytest.fixture(scope="module")
def report() -> sn.Report:
    return audited(Toy())


def test_an_attack_of_ones_own_is_judged_compared_drawn_and_printed(report, tmp_path) -> None:
    assert not report.passes(sn.Policy({"max_toy": 0.5}))
    assert "toy.told" in report.passes(sn.Policy({"max_toy": 0.5})).broken[0].words
    assert report.passes(sn.Policy({"max_toy": 1.0}))
    assert "told by a toy" in str(report)
    document = report.document(sn.Policy({"max_toy": 0.5}))
    drawn = charts(document)["bounds"]["data"]["values"]
    assert {(row["finding"], row["limit"]) for row in drawn} == {("told by a toy ↓", 0.5)}
    against = {one.item: one.status for one in report.evidence()}
    assert against["AML.T0024.001"] == "evidence against"
    less = Finding.of(
        "toy.told", Interval(0.2, 0.1, 0.3), samples=60, baseline=0.0, threat=Threat(), source=""
    )
    calm = [replace(one, findings=(less,)) for one in report.subjects]
    assert sn.compare(replace(report, subjects=tuple(calm)), report).outcome == "fail"
    for form in ("html", "md", "xml", "sarif", "json"):
        report.save(tmp_path / f"report.{form}", sn.Policy({"max_toy": 0.5}))
        assert "toy.told" in (tmp_path / f"report.{form}").read_text()


def test_a_finding_that_nobody_declared_is_refused() -> None:
    with pytest.raises(
        sn.errors.ConfigError, match=r"Expected Toy to declare a metric for the finding toy\.gain"
    ):
        audited(Toy(name="toy.gain"))
    with pytest.raises(sn.errors.ConfigError, match="Expected Nameless to declare what it finds"):
        Tier("nameless", (Nameless(),))


def test_what_is_measured_elsewhere_and_nobody_declares_is_named_and_not_compared() -> None:
    strange = subject("balanced", 0.03, 5.0, findings=(finding("strange.leak", 0.9, 1.0),))
    compared = sn.compare(made(strange), made(strange))
    assert "no imported attack declares them: strange.leak" in " ".join(compared.caveats)


@pytest.mark.parametrize("attack", [*ATTACKS, *CHECKS], ids=lambda attack: attack.__name__)
def test_every_attack_declares_what_it_finds_and_speaks_to_items_that_there_are(attack) -> None:
    assert attack.metrics
    assert {item for metric in attack.metrics for item in metric.standards} <= ITEMS


def test_every_tier_is_made_of_attacks_that_are_listed() -> None:
    played = {type(attack) for tier in TIERS.values() for attack in tier.measurements}
    assert played | {Timing} == {*ATTACKS, *CHECKS}  # which needs a served model
    assert Timing not in played


def test_every_kind_of_finding_and_every_limit_stands_in_the_docs() -> None:
    report, gate = ((DOCS / name).read_text() for name in ("report.md", "gate.md"))
    ours = [metric for metric in declared().every if not metric.name.startswith("toy.")]
    assert [one.name for one in ours if f"`{one.name}`" not in report] == []
    names = [*declared().limits(), *declared().limits(of_groups=True)]
    assert [name for name in names if f"`{name}`" not in gate and name != "max_toy"] == []


def taking(name: str, limit: str = "max_toy") -> type[Attack]:
    """Makes a class that declares a finding of this name, and never runs."""

    @dataclass(frozen=True)
    class Taking(Attack):
        metrics = (Metric(name, "taken", "more", Limit(limit, 0.5, "")),)

        def __call__(self, game: Game) -> Outcome:
            return Outcome()

    return Taking


@pytest.mark.parametrize(
    "name", ["attribute.income.*", "inversion", "membership.*.auc", "accuracy"]
)
def test_no_class_takes_a_finding_from_its_limit_by_being_there(name) -> None:
    before = declared().find("attribute.income.gain"), declared().find("inversion")
    kind = taking(name)
    assert (declared().find("attribute.income.gain"), declared().find("inversion")) == before
    with pytest.raises(sn.errors.ConfigError, match="would also match findings of"):
        Tier("taking", (kind(),))
    broken = finding("attribute.income.gain", 0.4, 0.6)
    assert not sn.Policy({"max_attribute_gain": 0.1}).judge([broken], sn.PrivacyCost())


def test_a_limit_on_what_is_proven_is_no_finding_s(monkeypatch) -> None:
    with pytest.raises(sn.errors.ConfigError, match="max_epsilon is about what is proven"):
        Tier("taking", (taking("taken.epsilon", "max_epsilon")(),))
    kind = taking("taken.words")
    monkeypatch.setattr(kind, "metrics", ("oops",))
    with pytest.raises(sn.errors.ConfigError, match=r"as Metric\(\.\.\.\), got \('oops',\)"):
        Tier("taking", (kind(),))
    assert sn.Policy({"max_leakage": 0.5})  # whatever classes there are


def test_a_report_of_findings_that_nothing_here_declares_is_inconclusive() -> None:
    strange = made(subject("balanced", 0.0, 5.0, findings=(finding("strange.leak", 0.9, 1.0),)))
    verdict = strange.passes(sn.Policy({"max_bits_per_answer": 9}))
    assert verdict.outcome == "inconclusive"
    assert "strange.leak 0.950 [0.900, 1.000]: no imported attack" in verdict.broken[0].words
