"""A judgment says what decided, by how much, what would decide it, and what helps."""

import pytest
from by_hand import finding as by_hand

import shieldnet as sn
from shieldnet.findings.finding import NO_USE, Finding, Threat
from shieldnet.gate.judging import Judgment, helps


def judged(limit: str, value: float, one: Finding) -> Judgment:
    (found,) = sn.Policy({limit: value}).judge([one], sn.PrivacyCost()).judgments
    return found


def of(name: str, value: float, low: float, high: float, **more) -> Finding:
    settings = {"samples": 400, "baseline": 0.0, "threat": Threat(), "source": "by hand", **more}
    return Finding(name, value, low, high, **settings)


def test_a_broken_limit_says_by_how_much_and_what_helps() -> None:
    found = judged("max_membership_auc", 0.65, by_hand("membership.auc", 0.737, 0.834))
    assert found.words.endswith("max_membership_auc = 0.65, broken by at least 0.087")
    assert "Regularize the model" in found.helps
    assert "Only private training" in found.helps
    found = judged("min_accuracy", 0.9, by_hand("accuracy", 0.7, 0.8))
    assert found.words.endswith("min_accuracy = 0.9, broken by at least 0.1")
    assert judged("min_accuracy", 0.9, by_hand("accuracy", 0.91, 0.95)).helps == ""


@pytest.mark.parametrize(
    ("one", "limit", "words"),
    [
        (of("inversion", 0.08, 0.04, 0.12), 0.1, "about 1,600 nonmembers would decide, instead"),
        (of("inversion", 0.08, 0.0, 0.11), 0.1, "about 900 nonmembers would decide, instead"),
        (of("inversion", 0.1, 0.0, 0.2), 0.1, "too near the limit for any number of rows"),
        (of("inversion", 0.12, 0.08, 0.16), 0.1, "instead of 400; the estimate breaks the limit"),
    ],
)
def test_an_inconclusive_limit_says_how_many_rows_would_decide(one, limit, words) -> None:
    found = judged("max_leakage", limit, one)
    assert found.outcome == "inconclusive"
    assert words in found.words


@pytest.mark.parametrize(("scale", "count"), [(1, "1,600"), (4, "6,400"), (9, "15,000")])
def test_rows_that_would_decide_grow_with_the_square_of_the_width(scale, count) -> None:
    """At that many rows the interval would end at the limit; two digits are kept, rounded up."""
    width = 0.04 * scale**0.5
    found = judged("max_leakage", 0.1, of("inversion", 0.08, 0.08 - width, 0.08 + width))
    assert f"about {count} nonmembers would decide, instead of 400" in found.words


def test_a_rate_of_members_counts_both_sets() -> None:
    found = judged("max_membership_auc", 0.6, of("membership.auc", 0.59, 0.55, 0.63))
    assert "members and nonmembers together would decide" in found.words


def test_a_number_that_cannot_vary_says_why_beside_it() -> None:
    unused = of("attribute.sex.gain", 0.0, 0.0, 0.0, note=f"AUC, less 0.5; {NO_USE}")
    found = judged("max_attribute_gain", 0.1, unused)
    assert found.words == (
        f"attribute.sex.gain 0.000 [0.000, 0.000] ({NO_USE}), max_attribute_gain = 0.1"
    )
    nothing = judged("max_class_inversion", 0.5, by_hand("class_inversion", 0.0, 1.0))
    assert "the interval spans the whole range, so it says nothing" in nothing.words


def test_what_was_not_measured_says_how_it_can_be() -> None:
    (found,) = sn.Policy({"max_attribute_gain": 0.1}).judge([], sn.PrivacyCost()).judgments
    assert "max_attribute_gain = 0.1 requires it. To measure it: " in found.words
    assert "a column of the sets that the model ignores is kept beside it" in found.words


def test_every_limit_says_what_helps() -> None:
    from shieldnet.gate.declared import PROVEN, declared

    every = [*declared().limits().values(), *declared().limits(of_groups=True).values(), *PROVEN]
    ours = [limit for limit in every if limit.name != "max_toy"]
    assert [limit.name for limit in ours if not limit.helps.endswith(".")] == []


def test_an_advice_stands_once_with_all_its_limits() -> None:
    judgments = [
        Judgment("a", "fail", "", helps="Do it."),
        Judgment("b", "inconclusive", "", helps="Do it."),
        Judgment("b", "fail", "", helps="Do it."),
        Judgment("c", "pass", "", helps="Not this."),
    ]
    assert helps(judgments) == ["a, b: Do it."]


def test_a_dict_of_limits_is_a_policy_and_a_wrong_one_is_refused_in_words() -> None:
    from by_hand import made

    assert made().passes({"max_leakage": 0.5})
    with pytest.raises(sn.errors.PolicyFailed, match="broken by at least"):
        made().require({"max_leakage": 0.001})
    with pytest.raises(sn.errors.PolicyFailed, match="what helps: max_leakage: Release less"):
        made().require({"max_leakage": 0.001})
    with pytest.raises(sn.errors.ConfigError, match="Expected max_leakage to be a finite number"):
        made().require({"max_leakage": "0.1"})
    with pytest.raises(sn.errors.ConfigError, match="a dict of limits .* got int"):
        made().require(3)


def test_a_guarantee_that_no_limit_judges_is_noted() -> None:
    claimed = sn.Guarantee(4.0, 1.0, 40, 100, 1e-5)
    note = "a guarantee of training is given, but the policy has no max_epsilon"
    auc, cost = [by_hand("membership.auc", 0.4, 0.5)], sn.PrivacyCost()
    verdict = sn.Policy({"max_membership_auc": 0.6}).judge(auc, cost, claimed)
    assert verdict.notes == (note,)
    assert f"note  {note}" in str(verdict)
    assert verdict
    assert not sn.Policy({"max_membership_auc": 0.6}).judge(auc, cost).notes
    assert not sn.Policy({"max_epsilon": 8.0}).judge(auc, cost, claimed).notes
    assert not sn.Policy.unjudged().judge(auc, cost, claimed).notes


def test_the_worst_group_is_named_where_it_is_judged() -> None:
    name, source = "membership.worst_group.auc", "LiRA on class yes, of 2 groups"
    found = judged("max_worst_group_auc", 0.7, of(name, 0.69, 0.6, 0.78, source=source))
    assert found.words.startswith(f"{name} of class yes 0.690")
    assert "members and nonmembers of class yes together would decide" in found.words


def test_an_accuracy_no_better_than_a_constant_says_so() -> None:
    found = judged("min_accuracy", 0.7, of("accuracy", 0.865, 0.83, 0.9, baseline=0.85))
    assert "(always naming the most frequent class: 0.850)" in found.words
    better = judged("min_accuracy", 0.7, of("accuracy", 0.9, 0.87, 0.93, baseline=0.85))
    assert "always" not in better.words
