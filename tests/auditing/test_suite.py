import json
import logging
import math
import re
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.attacks import (
    AttributeInference,
    AttributeRecovery,
    Averaging,
    ClassInversion,
    Extraction,
    Game,
    Inversion,
    JitterAveraging,
    Membership,
    OneRun,
    Reidentification,
    StraightThrough,
    TableLearning,
)
from shieldnet.attacks.adversary.decoders import Convolutional, KernelRidge, Ridge
from shieldnet.auditing import plan as tiers
from shieldnet.auditing.plan import Plan
from shieldnet.checks import CHECKS, Attribution, Memorization
from shieldnet.data.examples import Examples
from shieldnet.demo import breast_cancer, digits, divide, train
from shieldnet.reports.report import SCHEMA, save

QUICK = sn.Tier(
    "quick",
    (
        Inversion(decoders=(Ridge(),)),
        Averaging(queries=(2,)),
        Reidentification(),
        Membership(),
    ),
    (Attribution(),),
)

RIDGE = (Ridge(),)
FEW = sn.Tier(
    "few",
    (
        Inversion(decoders=RIDGE),
        Averaging(queries=(2,)),
        JitterAveraging(queries=2),
        TableLearning(decoders=RIDGE),
        StraightThrough(decoders=RIDGE, steps=2),
        Reidentification(),
        Membership(),
        OneRun(),
        AttributeRecovery(),
        AttributeInference(),
        Extraction(students=RIDGE),
        ClassInversion(steps=2),
    ),
    tuple(check() for check in CHECKS),
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the suite with one decoder: what is tested here is the bookkeeping."""
    monkeypatch.setattr(tiers, "TIERS", {"standard": QUICK})


@pytest.fixture
def sets(digits_split) -> dict:
    return {
        "members": digits_split.members,
        "nonmembers": digits_split.nonmembers,
        "auxiliary": tuple(part[:300] for part in digits_split.auxiliary),
    }


@pytest.mark.usefixtures("quick")
class TestAudit:
    def test_the_bare_model_stands_beside_every_shield(self, digits_model, sets) -> None:
        report = sn.audit({"balanced": sn.harden(digits_model)}, **sets)
        assert [subject.name for subject in report.subjects] == ["bare", "balanced"]
        assert report["bare"].certificate.bits == math.inf
        assert report.certificate.bits == pytest.approx(math.log2(40))
        assert report["bare"]["accuracy"].value == report["balanced"]["accuracy"].value
        assert report["balanced"]["agreement"].value == 1
        assert report["bare"]["attribution.rank_correlation"].value > 0.7
        with pytest.raises(KeyError, match="has no shield nobody. It has: bare, balanced"):
            report["nobody"]
        with pytest.raises(KeyError, match="bare has no finding nothing"):
            report["bare"]["nothing"]

    def test_the_same_seed_gives_the_same_report(self, digits_model, sets) -> None:
        noisy = sn.Shield(digits_model, sn.ClipNorm(10.0), sn.GaussianNoise(2.0))
        few = small_sets(sets)
        one, two = (sn.audit(noisy, **few, seed=7) for _ in range(2))
        assert one.findings == two.findings
        assert sn.audit(noisy, **few, seed=8).findings != one.findings

    def test_global_seed_and_model_are_not_touched(self, digits_model, sets) -> None:
        state = torch.get_rng_state()
        weights = {name: value.clone() for name, value in digits_model.state_dict().items()}
        sn.audit(sn.harden(digits_model), **sets)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(weights[k], v) for k, v in digits_model.state_dict().items())
        assert all(parameter.grad is None for parameter in digits_model.parameters())

    def test_it_prints_what_is_proven_measured_and_untested(self, digits_model, sets) -> None:
        text = str(sn.audit(sn.harden(digits_model), **sets, title="Digits"))
        assert text.startswith("Digits\nshield")
        assert "5.33" in text
        assert "measured lower bounds" in text
        assert "not tested: membership.tpr_at_fpr_1e-3: needs 3000 nonmembers" in text
        assert "-0.000" not in text

    def test_what_does_not_apply_is_listed_with_its_reason(self, digits_model, sets) -> None:
        del sets["auxiliary"]
        report = sn.audit(sn.harden(digits_model), **sets)
        assert "inversion: it needs auxiliary data: pass auxiliary=..." in report.untested
        assert "averaging: the shield gives the same answer every time" in report.untested
        with pytest.raises(sn.errors.PolicyFailed, match="inversion was not measured"):
            report.require()

    def test_records_stay_out_unless_they_are_asked_for(self, digits_model, sets, tmp_path) -> None:
        report = sn.audit(sn.harden(digits_model), **sets)
        assert report.inputs is None
        assert all(subject.reconstructions is None for subject in report.subjects)
        report.save(tmp_path / "report.html")
        assert "No record is shown" in (tmp_path / "report.html").read_text()
        shown = sn.audit(sn.harden(digits_model), **sets, with_examples=3)
        assert shown.inputs.shape == (3, 1, 8, 8)
        assert shown["bare"].reconstructions.shape == (3, 1, 8, 8)

    def test_a_report_saved_as_json_is_read_back(self, digits_model, sets, tmp_path) -> None:
        report = sn.audit(sn.harden(digits_model), **sets, with_examples=2)
        report.save(tmp_path / "report.json")
        again = sn.Report.load(tmp_path / "report.json")
        assert again.findings == report.findings
        assert again.certificate.cost == report.certificate.cost
        assert again["bare"].certificate.cost == sn.PrivacyCost()
        assert torch.allclose(again.inputs, report.inputs, atol=1e-4)
        assert str(again) == str(report)
        document = json.loads((tmp_path / "report.json").read_text())
        assert document["schema"] == SCHEMA == "shieldnet.report/1"

    def test_the_page_is_one_file_that_asks_for_nothing(self, digits_model, sets, tmp_path) -> None:
        report = sn.audit(sn.harden(digits_model), **sets, with_examples=2, title="<b>Digits & co")
        report.save(tmp_path / "report.html")
        page = (tmp_path / "report.html").read_text()
        assert "&lt;b&gt;Digits &amp; co" in page
        assert not re.findall(r"<script[^>]*\ssrc", page)
        assert "default-src 'none'" in page
        assert "unsafe-eval" not in page
        assert set(re.findall(r'<img src="([a-z]+):', page)) == {"data"}
        assert not re.findall(r"url\(\s*['\"]?http|@import|<link|<iframe|<form", page)
        assert (
            len(re.findall(r'<img src="data', page)) == 2 * 3 + 3
        )  # inputs and two readings of each; two leak maps and variance
        order = [
            "Proven at most, measured at least",
            "What an adversary sees",
            "Where the input leaks",
            "Utility against leakage",
            "Every measurement",
            "Not tested",
        ]
        places = [page.index(title) for title in order]
        assert places == sorted(places)

    def test_exposed_records_are_named_by_their_places_in_the_sets_as_given(
        self, digits_model, sets
    ) -> None:
        inputs, labels = sets["nonmembers"]
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(1))
        given = sets | {"nonmembers": (inputs[order], labels[order])}
        plain, moved = (
            {one.name: one for one in sn.audit(sn.harden(digits_model), **each)["bare"].exposed}
            for each in (sets, given)
        )
        found, again = plain["inversion"], moved["inversion"]
        assert found.role == "nonmembers"
        assert order[list(again.rows)].tolist() == list(found.rows)
        assert again.values == pytest.approx(found.values, abs=1e-3)
        assert list(found.values) == sorted(found.values, reverse=True)

    def test_given_groups_are_measured_one_by_one(self, digits_model, sets) -> None:
        halves = [
            np.where(sets[name][1].numpy() < 5, "low", "high") for name in ("members", "nonmembers")
        ]
        rare = [np.arange(len(half)) < 5 for half in halves]
        report = sn.audit(
            sn.harden(digits_model), **sets, groups={"half": tuple(halves), "rare": tuple(rare)}
        )
        assert report.groups == ("half = high", "half = low", "rare = False", "rare = True")
        inputs, labels = sets["nonmembers"]
        right = (digits_model(inputs).argmax(-1) == labels)[torch.from_numpy(halves[1] == "low")]
        found = report["shield"]["accuracy.group.half = low"]
        assert found.value == pytest.approx(float(right.double().mean()))
        assert found.samples == len(right)
        one = report["shield"]["membership.group.half = low.auc"]
        assert one.samples == sum(int((half == "low").sum()) for half in halves)
        assert one.low < report["shield"]["membership.auc"].high
        untested = "membership of rare = True: needs 30 members and nonmembers, there are 5 and 5"
        assert untested in report.untested
        policy = sn.Policy({}, groups={"*": {"max_membership_auc": 1.0}})
        with pytest.raises(
            sn.errors.PolicyFailed, match="membership.group.rare = True.auc was not meas"
        ):
            report.require(policy)

    def test_curves_and_durations_come_with_the_findings(self, digits_model, sets) -> None:
        subject = sn.audit(sn.harden(digits_model), **sets)["shield"]
        curve = subject.curves["membership"]
        assert curve.fpr[-1] == curve.tpr[-1] == 1
        assert list(curve.fpr) == sorted(curve.fpr)
        rows = zip(curve.low, curve.tpr, curve.high, strict=True)
        assert all(low <= tpr <= high for low, tpr, high in rows)
        assert set(subject.durations_s) >= {"inversion", "membership", "attribution"}

    def test_the_gate_raises_with_finding_bound_and_limit(self, digits_model, sets) -> None:
        report = sn.audit(sn.harden(digits_model, "strict"), **sets)
        report.require(sn.Policy({"max_leakage": 0.1, "min_accuracy": 0.9}))
        with pytest.raises(
            sn.errors.PolicyFailed, match=r"accuracy 0\.\d+ \[.*\], min_accuracy = 0.99"
        ):
            report.require(sn.Policy({"min_accuracy": 0.99}))
        accuracy = report["shield"]["accuracy"].value
        with pytest.raises(sn.errors.PolicyInconclusive, match="inconclusive"):
            report.require(sn.Policy({"min_accuracy": accuracy}))

    def test_the_bare_model_alone_is_judged_too(self, digits_model, sets) -> None:
        report = sn.audit(sn.Shield(digits_model), **sets)
        assert [subject.name for subject in report.subjects] == ["bare"]
        with pytest.raises(sn.errors.PolicyFailed, match="bare: inversion"):
            report.require()

    def test_labels_and_probabilities_are_audited_as_released(self, digits_model, sets) -> None:
        shields = {
            release: sn.harden(digits_model, "strict", release=release)
            for release in ("labels", "probabilities")
        }
        report = sn.audit(shields, **sets)
        assert report["labels"]["inversion"].high < 0.03
        assert report["labels"]["accuracy"].value == report["bare"]["accuracy"].value

    def test_a_table_names_the_columns_that_leak_and_shows_no_pixels(self, tmp_path) -> None:
        task = breast_cancer()
        split = divide(task)
        model = train(task, split, epochs=30)
        report = sn.audit(
            sn.harden(model),
            members=split.members,
            nonmembers=split.nonmembers,
            auxiliary=split.auxiliary,
            columns=task.columns,
            with_examples=3,
        )
        prefix = "inversion.column."
        columns = {
            one.name.removeprefix(prefix): one.value
            for one in report["bare"].findings
            if one.name.startswith(prefix)
        }
        assert set(columns) == set(task.columns)
        assert max(columns, key=columns.get).startswith(("worst", "mean"))
        report.save(tmp_path / "report.html")
        page = (tmp_path / "report.html").read_text()
        assert "The columns that leak most" in page
        assert max(columns, key=columns.get) in page
        assert '<img src="data' not in page


SMALL = sn.Tier(
    "small", (Inversion(decoders=(Ridge(),)), Membership()), (Attribution(),), shadows=8
)


def small_sets(sets: dict) -> dict:
    return {name: (inputs[:150], labels[:150]) for name, (inputs, labels) in sets.items()}


def test_every_engine_gives_the_same_report(digits_model, sets) -> None:
    shield = sn.Shield(digits_model, sn.ClipNorm(10.0), sn.GaussianNoise(2.0))
    given = {**small_sets(sets), "tier": SMALL}
    here = sn.audit(shield, **given, engine="inline")
    there = sn.audit(shield, **given, engine="processes", workers=2)
    assert [subject.findings for subject in here.subjects] == [
        subject.findings for subject in there.subjects
    ]


def test_a_stopped_audit_goes_on_where_it_was(digits_model, sets, tmp_path) -> None:
    shield = sn.Shield(digits_model, sn.ClipNorm(10.0), sn.GaussianNoise(2.0))
    given = {**small_sets(sets), "engine": "inline", "cache": tmp_path / "cache"}

    class Stops(Membership):
        def __call__(self, game):
            raise KeyboardInterrupt

    first = sn.Tier("first", (Inversion(decoders=(Ridge(),)), Stops()), shadows=8)
    with pytest.raises(KeyboardInterrupt):
        sn.audit(shield, **given, tier=first)
    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    assert len(kept) == 2  # the shadows, and the bare model's inversion
    resumed = sn.audit(shield, **given, tier=SMALL)
    assert kept < {path.name for path in (tmp_path / "cache").iterdir()}
    fresh = sn.audit(shield, **{**given, "cache": None}, tier=SMALL)
    assert resumed.findings == fresh.findings
    again = sn.audit(shield, **given, tier=SMALL)
    assert again.findings == fresh.findings
    assert torch.equal(
        again.subjects[-1].features["leak map"], fresh.subjects[-1].features["leak map"]
    )


def test_another_target_is_never_answered_from_the_cache(digits_model, sets, tmp_path) -> None:
    """A peer's shadow cache has no fingerprint: another target reads as chance."""
    given = {**small_sets(sets), "engine": "inline", "cache": tmp_path, "tier": SMALL}
    other = train(digits(), divide(digits(), seed=1), seed=1)
    sn.audit(sn.harden(digits_model), **given)
    cached = sn.audit(sn.harden(other), **given)
    fresh = sn.audit(sn.harden(other), **{**given, "cache": None})
    assert cached.findings == fresh.findings


def test_how_long_it_takes_is_told_before_it_starts(digits_model, sets, caplog) -> None:
    with caplog.at_level("INFO", logger="shieldnet"):
        sn.audit(sn.harden(digits_model), **small_sets(sets), tier=SMALL, shadows=0)
    assert re.search(
        r"small audit: 2 attacks and 1 check on 2 shields; about \d+ (s|min)", caplog.text
    )


@pytest.mark.parametrize(("progress", "said"), [(None, True), (True, True), (False, False)])
def test_how_long_it_takes_is_told_where_no_log_is_set_up(
    digits_model, sets, capsys, monkeypatch, progress, said
) -> None:
    monkeypatch.setattr(logging.getLogger("shieldnet"), "level", logging.WARNING)
    given = {**small_sets(sets), "tier": SMALL, "shadows": 0, "progress": progress}
    sn.audit(sn.harden(digits_model), **given)
    assert (
        "small audit: 2 attacks and 1 check on 2 shields; about" in capsys.readouterr().err
    ) == said


def test_sets_without_labels_are_audited_for_what_needs_none(digits_model, sets) -> None:
    bare = {name: inputs for name, (inputs, _) in small_sets(sets).items()}
    report = sn.audit(sn.harden(digits_model), **bare, tier=SMALL)
    assert report["bare"]["inversion"].value > 0.3
    assert "membership: it needs labels: pass members=(inputs, labels)" in report.untested
    assert any(line.startswith("accuracy: it needs labels") for line in report.untested)
    assert any(line.startswith("membership with shadow models") for line in report.untested)
    with pytest.raises(sn.errors.PolicyFailed, match="membership.auc was not measured"):
        report.require()


def test_a_biased_split_voids_membership_and_fails_a_policy_that_asks_for_it(
    digits_model, sets
) -> None:
    given = small_sets(sets)
    given["members"] = given["members"][0] * 0.9, given["members"][1]
    report = sn.audit(sn.harden(digits_model), **given, tier=SMALL)
    assert report["shield"]["membership.blind"].low > 0.5
    assert any("void" in line for line in report.untested)
    with pytest.raises(sn.errors.PolicyFailed, match="membership.auc was not measured"):
        report.require(sn.Policy({"max_membership_auc": 1.0}))


def test_canaries_and_groups_are_found_where_they_are_given(sets) -> None:
    planted = sn.plant_canaries(sets["members"], count=120, seed=0)
    recipe = sn.Recipe(digits().make_model, epochs=60)
    model = recipe(planted.data, 0)
    given = {**sets, "members": planted.members, "canaries": planted, "train": recipe}
    rows = len(planted.members[0]), len(sets["nonmembers"][0])
    groups = {"half": tuple([place % 2 for place in range(count)] for count in rows)}
    tier = sn.Tier("small", (Membership(),), (Memorization(),), shadows=16)
    report = sn.audit(sn.Shield(model, sn.Round(4)), **given, groups=groups, tier=tier)
    found = report.subjects[-1]
    assert found["membership.canaries.auc"].low > found["membership.auc"].value
    assert "of 12 groups" in found["membership.worst_group.auc"].source
    assert found["memorization.canaries"].low > 0.7


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({n: f"digit {n}" for n in range(10)}, r"on class digit \d, of 10 groups"),
        ({0: "a", 1: "b"}, r"on class \d, of 10 groups"),
        (dict.fromkeys(range(10), "same"), r"on class \d, of 10 groups"),
        (["a"], r"on class \d, of 10 groups"),
        (None, r"on class \d, of 10 groups"),
    ],
)
def test_classes_have_the_names_of_a_hugging_face_config_where_it_names_all(
    digits_model, sets, names, said
) -> None:
    model = nn.Sequential(digits_model)
    model.config = SimpleNamespace(id2label=names)
    tier = sn.Tier("small", (Membership(),))
    report = sn.audit(sn.harden(model), **sets, tier=tier, shadows=0)
    assert re.search(said, report.subjects[-1]["membership.worst_group.auc"].source)


class Reads(nn.Module):
    """Embeds texts as the mean of random word vectors."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(60, 24, generator=generator))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table[tokens].mean(1)


def texts(rows: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 60, (rows, 6), generator=torch.Generator().manual_seed(seed))


def test_embeddings_of_texts_give_their_words_away() -> None:
    sets = {name: texts(rows, seed) for seed, (name, rows) in enumerate(
        (("members", 60), ("nonmembers", 200), ("auxiliary", 600))
    )}  # fmt: skip
    coarse = sn.Shield(Reads(), sn.ClipNorm(1.0), sn.Sign(), outputs="embeddings", axis=-1)
    tier = sn.Tier("small", (Inversion(decoders=(Ridge(),)), Averaging(), Reidentification()))
    report = sn.audit(coarse, **sets, tier=tier)
    assert report["bare"]["inversion"].low > 0.25
    assert report["shield"]["inversion"].value < report["bare"]["inversion"].low
    assert report["bare"]["reidentification"].value == 1
    assert report["bare"]["agreement"].value == 1
    assert report["shield"]["agreement"].value < 0.9


def test_values_of_a_regression_are_inverted_over_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 4, generator=generator)
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.ones(1, 4)
    shield = sn.Shield(model, sn.ClipRange(-3, 3), sn.RoundTo(1.0), outputs="values")
    sets = {"members": rows[:100], "nonmembers": rows[100:250], "auxiliary": rows[250:]}
    report = sn.audit(shield, **sets, tier="quick")
    assert report["bare"]["inversion"].value == pytest.approx(0.25, abs=0.05)  # 1 of 4 directions
    assert report["shield"]["inversion"].value < report["bare"]["inversion"].value
    assert any("reads scores of classes, the model gives values" in x for x in report.untested)


def test_a_decoder_that_draws_is_tried_on_pictures() -> None:
    rows = torch.rand(60, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    attack = Inversion(decoders=(Ridge(),))
    assert [type(one).__name__ for one in attack._drawing(rows.shape[1:])] == ["Convolutional"]
    decoder = Convolutional(shape=(1, 16, 16))
    answers = rows.flatten(1)[:, :20]
    guess = decoder.predict(answers, rows.flatten(1), answers[:7], (4.0, 3.0))
    assert guess.shape == (7, 256)
    assert torch.equal(guess, decoder.predict(answers, rows.flatten(1), answers[:7], (4.0, 3.0)))
    odd = Convolutional(shape=(3, 17, 18))
    assert odd.predict(answers, torch.zeros(60, 918), answers[:2], (4.0, 1.0)).shape == (2, 918)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shadows": 3}, "at least 4 shadows, or 0 for none; got 3"),
        ({"tier": "huge"}, "Expected tier to be one of quick, standard, full"),
        ({"engine": "cloud"}, "Expected engine to be one of"),
        ({"canaries": 3}, "as plant_canaries returns them"),
        ({"groups": {"sex": [1]}}, "Expected groups as"),
        ({"groups": {"sex": ([1], [1])}}, "the group sex of the members as 500 values"),
        ({"train": 3}, "Expected train as a function"),
        ({"workers": 0, "engine": "processes"}, "Expected workers >= 1"),
        (
            {"groups": {"sex": (["a", None] * 250, ["a"] * 447)}},
            "the group sex as values of one kind, none of them missing",
        ),
        ({"members": None}, r"Expected members as \(inputs, labels\), got None"),
        ({"members": (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))}, "at least one"),
        (
            {"members": (torch.rand(50, 1, 4, 4), torch.zeros(50, dtype=torch.int64))},
            "of one shape",
        ),
        ({"columns": ["a"]}, "Only a table has columns"),
        ({"seed": -1}, "Expected seed from 0"),
        ({"with_examples": -1}, "Expected with_examples >= 0"),
    ],
)
def test_what_cannot_be_audited_is_refused(digits_model, sets, change, words) -> None:
    with pytest.raises(sn.errors.ShieldnetError, match=words):
        sn.audit(sn.harden(digits_model), **{**sets, **change})


def test_labels_of_one_class_are_refused_where_each_answer_has_several(digits_model, sets) -> None:
    several = sn.harden(digits_model, outputs="binary_logits")
    with pytest.raises(sn.errors.DataError, match="label at every position"):
        sn.audit(several, **sets)


def test_overlapping_members_and_nonmembers_are_refused(digits_model, sets) -> None:
    with pytest.raises(sn.errors.DataError, match="500 of the 500 nonmembers are also members"):
        sn.audit(sn.harden(digits_model), **{**sets, "nonmembers": sets["members"]})


def test_labels_outside_the_classes_are_refused(digits_model, sets) -> None:
    inputs, labels = sets["nonmembers"]
    with pytest.raises(
        sn.errors.DataError, match="labels of the nonmembers from 0 to 9, got 5 to 14"
    ):
        sn.audit(sn.harden(digits_model), **{**sets, "nonmembers": (inputs, labels + 5)})


def test_shields_of_different_models_are_refused(sets) -> None:
    shields = {"one": sn.harden(nn.Linear(2, 2)), "two": sn.harden(nn.Linear(2, 2))}
    with pytest.raises(sn.errors.ConfigError, match="around one model"):
        sn.audit(shields, **sets)
    with pytest.raises(sn.errors.ConfigError, match="The name bare is kept"):
        sn.audit({"bare": sn.harden(nn.Linear(2, 2))}, **sets)
    with pytest.raises(
        sn.errors.ConfigError, match=r"got Linear. Put one around it: shieldnet.harden"
    ):
        sn.audit(nn.Linear(2, 2), **sets)
    with pytest.raises(sn.errors.ConfigError, match="Expected a Shield, or a dict of .*, got list"):
        sn.audit([], **sets)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema": "other/9", "reports": []}', "\x00"])
def test_what_is_no_report_is_refused(tmp_path, text) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(sn.errors.DataError, match="report"):
        sn.Report.load(path)
    with pytest.raises(sn.errors.DataError, match="No such file"):
        sn.Report.load(tmp_path / "nowhere.json")


def test_an_unknown_file_type_is_refused(tmp_path) -> None:
    with pytest.raises(sn.errors.ConfigError, match=r"\.md, \.xml, \.sarif; got report.pdf"):
        save([], tmp_path / "report.pdf")


@pytest.mark.usefixtures("quick")
def test_an_undefended_shield_among_others_does_not_slip_through_the_gate(
    digits_model, sets
) -> None:
    report = sn.audit(
        {"prod": sn.Shield(digits_model), "strict": sn.harden(digits_model, "strict")}, **sets
    )
    assert [subject.name for subject in report.subjects] == ["bare", "prod", "strict"]
    with pytest.raises(sn.errors.PolicyFailed, match="prod: max_bits_per_answer = 20"):
        report.require(sn.Policy({"max_bits_per_answer": 20}))


@pytest.mark.usefixtures("quick")
def test_a_model_without_any_signal_is_still_reported(sets) -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.flatten(1).sum(1, keepdim=True) * 0) + torch.arange(10.0)

    report = sn.audit(sn.harden(Constant()), **sets)
    assert report["bare"]["inversion"].value == pytest.approx(0, abs=0.02)
    assert any("rank_correlation" in line for line in report["bare"].untested)


def test_data_that_the_model_cannot_read_are_refused_before_the_attacks(sets) -> None:
    with pytest.raises(
        sn.errors.DataError, match="The model cannot read the nonmembers .*RuntimeError"
    ):
        sn.audit(sn.harden(nn.Linear(7, 3)), **sets)


@pytest.mark.parametrize(
    "text",
    ['{"schema": "shieldnet.report/1"}', '{"schema": "shieldnet.report/1", "reports": [{}]}'],
)
def test_a_damaged_report_is_refused(tmp_path, text) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(sn.errors.DataError, match="exactly one report|is damaged"):
        sn.Report.load(path)


@pytest.mark.usefixtures("quick")
def test_dollars_in_a_columns_name_are_drawn_as_they_are(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(300, 2, generator=generator), torch.arange(300) % 3
    report = sn.audit(
        {"$x$": sn.harden(nn.Linear(2, 3))},
        members=(rows[:100], labels[:100]),
        nonmembers=(rows[100:200], labels[100:200]),
        auxiliary=rows[200:],
        columns=["a$\\bad{$", "b"],
    )
    report.save(tmp_path / "report.html")
    assert "bad{$" in (tmp_path / "report.html").read_text()


class Tells(nn.Module):
    """Gives away on which side of each axis an input lies."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :4] * 3


def by_class(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    labels = rows[:, :4].argmax(1)
    order = labels.argsort()
    return rows[order], labels[order]


def test_sorted_auxiliary_rows_do_not_hide_a_leak(monkeypatch) -> None:
    """Decoders that keep the first rows would learn few classes, and the gate would pass."""
    monkeypatch.setattr("shieldnet.attacks.adversary.decoders.MAX_KERNEL_ROWS", 400)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1000, 8, generator=generator)
    sets = {
        "members": by_class(rows[:100]),
        "nonmembers": by_class(rows[100:300]),
        "auxiliary": by_class(rows[300:]),
    }
    tier = sn.Tier("small", (Inversion(decoders=(KernelRidge(),)),))
    report = sn.audit(sn.Shield(Tells()), **sets, tier=tier, engine="inline")
    assert report["bare"]["inversion"].low > 0.2
    with pytest.raises(sn.errors.PolicyFailed, match="bare: inversion"):
        report.require(sn.Policy({"max_leakage": 0.1}))
    game = Game(sn.Shield(Tells()), **{name: Examples(name, *pair) for name, pair in sets.items()})
    assert tier.attacks[0](game).findings[0].low > 0.2


def test_a_set_that_is_sorted_alone_raises_no_alarm() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5000, 8, generator=generator)
    labels = torch.randint(0, 4, (5000,), generator=generator)
    order = labels[:2500].argsort()
    sets = {
        "members": (rows[:2500][order], labels[:2500][order]),
        "nonmembers": (rows[2500:], labels[2500:]),
    }
    tier = sn.Tier("small", (Membership(),))
    report = sn.audit(sn.Shield(Tells(), sn.Label()), **sets, tier=tier, engine="inline")
    for name in ("membership.auc", "membership.label only.auc", "membership.worst_group.auc"):
        finding = report["shield"][name]
        assert finding.low <= 0.5 <= finding.high, name


def test_examples_with_a_name_of_their_own_get_their_roles() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 8, generator=generator)
    same = [Examples("rows", *by_class(part)) for part in rows.split(100)]
    given = dict(zip(("members", "nonmembers", "auxiliary"), same, strict=True))
    plain = {name: (one.inputs, one.labels) for name, one in given.items()}
    tier = sn.Tier("small", (Membership(),))
    one, two = (sn.audit(sn.Shield(Tells()), **sets, tier=tier) for sets in (given, plain))
    assert one.findings == two.findings


def test_an_audit_takes_gradients_whatever_mode_it_is_called_in(digits_model, sets) -> None:
    given = {**small_sets(sets), "tier": SMALL, "engine": "inline"}
    recipe = sn.Recipe(digits().make_model, epochs=3)
    plain = sn.audit(sn.harden(digits_model), **given, train=recipe)
    with torch.inference_mode():
        inside = {name: (x.clone(), y.clone()) for name, (x, y) in small_sets(sets).items()}
        there = sn.audit(sn.harden(digits_model), **{**given, **inside}, train=recipe)
    with torch.no_grad():
        again = sn.audit(sn.harden(digits_model), **given, train=recipe)
    assert plain.findings == there.findings == again.findings


def test_what_cannot_be_sent_stays_here(digits_model, sets) -> None:
    lock = threading.Lock()

    def holds_a_lock(data, seed):
        with lock:
            return sn.Recipe(digits().make_model, epochs=1)(data, seed)

    given = {**small_sets(sets), "tier": sn.Tier("small", (Membership(),)), "shadows": 4}
    report = sn.audit(sn.harden(digits_model), **given, train=holds_a_lock)
    assert report.environment["engine"] == "inline"


def test_a_group_too_small_is_listed_and_a_canary_of_no_class_refused(digits_model, sets) -> None:
    given = {**small_sets(sets), "tier": sn.Tier("small", (Membership(),))}
    rare = [1, *[0] * 149]
    report = sn.audit(sn.harden(digits_model), **given, groups={"rare": (rare, rare)})
    assert (
        "membership of rare = 1: needs 30 members and nonmembers, there are 1 and 1"
        in report.untested
    )
    planted = sn.plant_canaries(sets["auxiliary"], count=40).canaries
    wrong = Examples("canaries", planted.planted.inputs, planted.planted.labels + 9)
    canaries = replace(planted, planted=wrong)
    with pytest.raises(sn.errors.DataError, match="labels of the canaries from 0 to 9"):
        sn.audit(sn.harden(digits_model), **given, canaries=canaries)


def test_nothing_redrawn_is_kept_unless_the_report_shows_it(digits_model, sets, tmp_path) -> None:
    given = {**small_sets(sets), "tier": SMALL, "engine": "inline", "shadows": 0}
    sn.audit(sn.harden(digits_model), **given, cache=tmp_path / "none")
    sn.audit(sn.harden(digits_model), **given, cache=tmp_path / "two", with_examples=2)

    def redrawn(folder) -> list[int]:
        archives = [np.load(path) for path in folder.iterdir()]
        return [len(one["reconstructions"]) for one in archives if "reconstructions" in one]

    assert redrawn(tmp_path / "none") == []
    assert set(redrawn(tmp_path / "two")) == {2}


@pytest.mark.usefixtures("quick")
def test_records_of_two_sets_are_dropped_from_both_where_it_is_asked_for(
    digits_model, sets
) -> None:
    x, y = sets["members"]
    others = sets["nonmembers"]
    nonmembers = torch.cat([others[0], x[:3]]), torch.cat([others[1], y[:3]])
    halves = {"half": (np.arange(len(x)) < 250, np.arange(len(nonmembers[0])) % 2 == 0)}
    given = {**sets, "nonmembers": nonmembers, "groups": halves}
    with pytest.raises(sn.errors.DataError, match=r"duplicates='drop', or.*shieldnet.split"):
        sn.audit(sn.harden(digits_model), **given)
    report = sn.audit(sn.harden(digits_model), **given, duplicates="drop")
    (line,) = [one for one in report["shield"].untested if "were dropped" in one]
    assert line.startswith(f"3 of the {len(x)} members, 3 of the {len(nonmembers[0])} nonmembers:")
    found = report["shield"]["membership.auc"]
    assert found.samples == len(x) + len(others[0]) - 3
    without = {**sets, "members": (x[3:], y[3:])}
    plain = sn.audit(sn.harden(digits_model), **without)
    assert report.hashes == plain.hashes
    assert not [one for one in plain["shield"].untested if "were dropped" in one]
    exposed = [row for one in report["bare"].exposed if one.role == "members" for row in one.rows]
    assert all(3 <= row < len(x) for row in exposed)
    with pytest.raises(sn.errors.DataError, match="Every one of the 500 members stands in another"):
        sn.audit(
            sn.harden(digits_model), **{**sets, "nonmembers": sets["members"]}, duplicates="drop"
        )
    with pytest.raises(
        sn.errors.ConfigError, match="Expected duplicates to be one of refuse, drop"
    ):
        sn.audit(sn.harden(digits_model), **sets, duplicates="keep")


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_model_gets_records_in_the_type_of_its_weights(quick, digits_split, sets, kind) -> None:
    model = train(digits(), digits_split).to(kind)
    report = sn.audit(sn.harden(model), **sets)
    assert report["bare"]["accuracy"].value > 0.9
    assert report["bare"]["inversion"].low > 0.3


@pytest.mark.usefixtures("quick")
def test_a_regression_of_one_number_a_row_is_audited_like_one_of_a_column(sets) -> None:
    class Sums(nn.Module):
        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__()
            self.shape = shape

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1).sum(1).reshape(len(x), *self.shape)

    values = []
    for shape in ((), (1,)):
        report = sn.audit(sn.Shield(Sums(shape), sn.RoundTo(1.0), outputs="values"), **sets)
        values.append({one.name: one.value for one in report["shield"].findings})
    assert values[0] == values[1]
    assert "inversion" in values[0]


@pytest.mark.parametrize(
    ("few_of", "few"),
    [("members", 1), ("nonmembers", 2), ("auxiliary", 30), ("all", 1), ("all", 9), ("all", 30)],
)
def test_a_set_that_is_too_small_ends_no_audit(few, few_of) -> None:
    """What fits is measured, and the rest is listed as not tested, with how many rows it takes."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 3)
    names = ("members", "nonmembers", "auxiliary")
    counts = {name: few if few_of in (name, "all") else 60 for name in names}
    sets = {
        name: (
            torch.randn(count, 4, generator=generator),
            torch.randint(0, 3, (count,), generator=generator),
        )
        for name, count in counts.items()
    }
    shield = sn.Shield(model, sn.GaussianNoise(1.0))
    report = sn.audit(shield, **sets, tier=FEW, sensitive=("column 0",), shadows=0)
    assert report["shield"]["accuracy"].samples == counts["nonmembers"]
    assert any("needs at least" in line for line in report.untested)


def test_a_sensitive_column_does_not_end_as_findings_do(digits_model, sets) -> None:
    flat = {name: (part[0].flatten(1), part[1]) for name, part in sets.items()}
    columns = ("capital", "capital.gain", *map(str, range(62)))
    model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), digits_model)
    with pytest.raises(sn.errors.ConfigError, match="capital.gain ends as findings do"):
        sn.audit(sn.harden(model), **flat, columns=columns, sensitive=("capital.gain",))


def test_a_check_is_no_attack_and_the_refusal_says_where_it_goes() -> None:
    with pytest.raises(sn.errors.ConfigError, match=r"It is a check: checks=\(Attribution\("):
        sn.Tier("mine", (Attribution(),))
    with pytest.raises(sn.errors.ConfigError, match="Expected checks such as Attribution"):
        sn.Tier("mine", (Membership(),), (Membership(),))
    with pytest.raises(sn.errors.ConfigError, match="Expected a tuple of checks such as .*, got 8"):
        sn.Tier("mine", (Membership(),), 8)


def test_the_bar_counts_the_jobs_in_which_shadows_are_trained(digits_model) -> None:
    recipe = sn.Recipe(lambda: digits_model)
    jobs = {
        kind: Plan.of("quick", train=train, shadows=20).shadow_jobs
        for kind, train in (("none", None), ("recipe", recipe), ("own", lambda data, seed: None))
    }
    assert jobs == {"none": 3, "recipe": 3, "own": 20}


def test_long_audits_run_on_processes_and_quick_ones_here(linear, monkeypatch) -> None:
    monkeypatch.undo()  # what the tests of audits say
    shields = {"bare": sn.Shield(linear)}
    assert Plan.of("standard").for_shields(shields).engine == "processes"
    assert Plan.of("quick").for_shields(shields).engine == "inline"
