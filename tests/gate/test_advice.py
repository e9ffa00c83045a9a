"""What helps, given what the model reaches without a shield."""

import math
from dataclasses import replace

import pytest
from by_hand import made, subject

from shieldnet.findings.finding import Finding, Threat
from shieldnet.findings.reading import BY_LABEL, guess
from shieldnet.gate.judging import Judgment, beside_bare, crossed, each, helps, suited
from shieldnet.gate.policy import Policy
from shieldnet.privacy.certificate import Certificate
from shieldnet.privacy.cost import PrivacyCost


def accuracy(value: float, low: float, high: float) -> Finding:
    return found("accuracy", value, low, high, baseline=0.5)


def found(name: str, value: float, low: float, high: float, baseline: float) -> Finding:
    return Finding(name, value, low, high, 400, baseline, Threat(), "by hand")


def advice(own: Finding, bare: Finding, limit: float = 0.9) -> str:
    (judgment,) = each("min_accuracy", limit, [own], "accuracy")
    alone = each("min_accuracy", limit, [bare], "accuracy")
    return beside_bare(judgment, [own], [bare], alone).helps


def test_a_model_that_is_no_better_without_a_shield_is_to_be_improved() -> None:
    said = advice(accuracy(0.88, 0.83, 0.93), accuracy(0.88, 0.83, 0.93))
    assert said == "The model reaches no more without a shield: improve the model."


def test_a_model_that_breaks_the_limit_without_a_shield_is_to_be_improved() -> None:
    said = advice(accuracy(0.6, 0.55, 0.65), accuracy(0.8, 0.76, 0.84))
    assert said == "The model does not meet it without a shield either: improve the model."


def test_a_small_loss_behind_a_shield_is_the_shields() -> None:
    said = advice(accuracy(0.82, 0.74, 0.895), accuracy(0.89, 0.86, 0.92), limit=0.87)
    assert said.startswith("Without a shield the model reaches 0.890 [0.860, 0.920]: choose a sh")


def test_a_model_that_is_better_without_a_shield_needs_another_shield() -> None:
    said = advice(accuracy(0.8, 0.75, 0.85), accuracy(0.95, 0.92, 0.97))
    assert said.startswith("Without a shield the model reaches 0.950 [0.920, 0.970]: choose a sh")


def test_a_limit_that_is_met_needs_no_advice() -> None:
    assert not advice(accuracy(0.95, 0.93, 0.97), accuracy(0.99, 0.98, 1.0))


def test_other_limits_keep_their_advice() -> None:
    leak = found("inversion", 0.3, 0.2, 0.4, baseline=0.0)
    (judgment,) = each("max_leakage", 0.1, [leak], "inversion")
    assert beside_bare(judgment, [leak], [leak], ()) == judgment
    unknown = Judgment("proof", "fail", "a proof is crossed", "inversion", "check it")
    assert beside_bare(unknown, [leak], [leak], ()) == unknown


@pytest.mark.parametrize(
    ("kind", "bits", "left", "gone"),
    [
        ("logits", 5.3, ("--preset strict",), "alone already"),
        ("logits", math.log2(10), ("The shield releases labels alone already",), "--preset"),
        ("logits", 1.3, ("--preset strict",), "alone already"),
        ("values", 3.4, ("larger steps or a narrower range",), "--preset"),
        ("embeddings", math.inf, ("larger steps or a narrower range",), "--preset"),
    ],
)
def test_advice_names_nothing_that_does_not_fit_the_shield(kind, bits, left, gone) -> None:
    leak = found("inversion", 0.3, 0.2, 0.4, baseline=0.0)
    told = found("membership.auc", 0.8, 0.7, 0.9, baseline=0.5)
    judgments = [
        *each("max_leakage", 0.1, [leak], ""),
        *each("max_membership_auc", 0.6, [told], ""),
    ]
    stated = [
        Certificate("by hand", 10, PrivacyCost(bits=bits * positions), positions=positions)
        for positions in (1, 64)
    ]
    said, at_positions = ([suited(one, kind, by).helps for one in judgments] for by in stated)
    assert said == at_positions
    assert all(words in said[0] for words in left)
    assert not any(gone in advice for advice in said)
    assert said[1].startswith("Regularize the model")


def test_advice_to_several_shields_is_said_once() -> None:
    told = found("membership.auc", 0.8, 0.7, 0.9, baseline=0.5)
    (judgment,) = each("max_membership_auc", 0.6, [told], "")
    fewer = suited(judgment, "logits", Certificate("labels", 2, PrivacyCost(bits=1.0)))
    assert fewer.helps != judgment.helps
    for pair in ((judgment, fewer), (fewer, judgment)):
        assert helps(pair) == [f"max_membership_auc: {judgment.helps}"]
    assert helps((fewer, fewer)) == [f"max_membership_auc: {fewer.helps}"]


def test_where_no_decoder_was_accepted_auxiliary_records_are_missing() -> None:
    tried = replace(found("inversion", 0.0, 0.0, 0.4, baseline=0.0), note=BY_LABEL)
    (judgment,) = each("max_leakage", 0.1, [tried], "inversion")
    assert judgment.words.endswith(
        "; more auxiliary records would decide; the estimate meets the limit"
    )


def test_a_group_of_one_class_has_no_guess_beside_it() -> None:
    of_one = found("accuracy.group.default = yes", 0.5, 0.4, 0.6, baseline=1.0)
    assert guess(accuracy(0.4, 0.3, 0.6)) == "always naming the most frequent class: 0.500"
    assert not guess(of_one)


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (accuracy(0.95, 0.88, 0.99), "instead of 400; the estimate meets the limit"),
        (accuracy(0.85, 0.80, 0.91), "instead of 400; the estimate breaks the limit"),
        (accuracy(0.905, 0.86, 0.94), "the estimate meets the limit, but is close to it"),
        (accuracy(0.9, 0.85, 0.94), "too near the limit for any number of rows to decide"),
    ],
)
def test_the_rows_that_would_decide_are_said_with_the_side_of_the_estimate(finding, words) -> None:
    (judgment,) = each("min_accuracy", 0.9, [finding], "accuracy")
    assert judgment.words.endswith(words)


def test_a_subgroup_that_the_report_does_not_have_is_named_with_those_that_it_has() -> None:
    groups = {"groups": {"fraud = yes": {"min_accuracy": 0.5}}, "limits": {}}
    right = found("accuracy.group.fraud = 1", 0.7, 0.6, 0.8, baseline=0.0)
    report = made(subject("balanced", 0.0, 5.0, findings=(right,)), groups=("fraud = 1",))
    (judgment,) = report.passes(Policy(**groups)).judgments
    assert judgment.outcome == "fail"
    assert "no subgroup fraud = yes" in judgment.words
    assert "It has: fraud = 1" in judgment.words
    spaced = Policy(groups={"fraud=1": {"min_accuracy": 0.5}}, limits={})
    assert report.passes(spaced).outcome == "pass"
    bare = made(subject("balanced", 0.0, 5.0, findings=(right,)))
    assert "give --group" in bare.passes(Policy(**groups)).judgments[0].words


@pytest.mark.parametrize(
    ("name", "is_close"), [("one_run.independent.mu", True), ("one_run.mu", False)]
)
def test_a_bound_that_is_close_to_its_proof_may_cross_it_by_chance(name, is_close) -> None:
    above = replace(found(name, 2.9, 2.0, 3.5, baseline=0.0), ceiling=1.8)
    judgment = crossed(above)
    assert judgment.outcome == "fail"
    assert ("train again to tell" in judgment.words) == is_close
