import math
import re

import pytest

import shieldnet as sn
from shieldnet.gate.declared import declared
from shieldnet.gate.policy import PROVEN_NAMES, init_text
from shieldnet.privacy.cost import PrivacyCost


def finding(name: str, low: float, high: float, ceiling: float | None = None) -> sn.Finding:
    middle = (low + high) / 2
    return sn.Finding(name, middle, low, high, 400, 0.0, sn.Threat(), "by hand", ceiling)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(0.02, 0.08, "pass"), (0.02, 0.12, "inconclusive"), (0.11, 0.2, "fail"), (0.1, 0.1, "pass")],
)
def test_the_intervals_bound_is_judged_never_the_estimate(low, high, outcome) -> None:
    verdict = sn.Policy({"max_leakage": 0.1}).judge(
        [finding("inversion", low, high)], sn.PrivacyCost()
    )
    assert verdict.outcome == outcome
    assert "inversion" in str(verdict)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(0.95, 0.99, "pass"), (0.8, 0.95, "inconclusive"), (0, 0.5, "fail")],
)
def test_a_least_accuracy_is_judged_from_the_other_side(low, high, outcome) -> None:
    verdict = sn.Policy({"min_accuracy": 0.9}).judge(
        [finding("accuracy", low, high)], sn.PrivacyCost()
    )
    assert verdict.outcome == outcome


def test_leakage_is_judged_averaged_too() -> None:
    found = [finding("inversion", 0, 0.05), finding("averaging.256", 0.3, 0.4)]
    assert sn.Policy({"max_leakage": 0.1}).judge(found, sn.PrivacyCost()).outcome == "fail"


def test_what_could_not_be_measured_fails() -> None:
    verdict = sn.Policy({"max_leakage": 0.1}).judge([], sn.PrivacyCost())
    assert verdict.outcome == "fail"
    assert "was not measured" in str(verdict)


def test_a_measured_bound_above_its_proof_fails_everything() -> None:
    found = [finding("inversion", 0, 0.01), finding("reidentification", 0.3, 0.4, ceiling=0.2)]
    verdict = sn.Policy({"max_leakage": 0.1}).judge(found, sn.PrivacyCost())
    assert verdict.outcome == "fail"
    assert "measured at least 0.300, proven at most 0.200" in str(verdict)


@pytest.mark.parametrize(
    ("low", "ceiling", "words"),
    [
        (0.5, 0.2002, "measured at least 0.500, proven at most 0.201"),
        (0.5009, 0.3, "measured at least 0.500, proven at most 0.300"),
        (0.50049, 0.50041, "measured at least 0.50049, proven at most 0.50041"),
    ],
)
def test_a_proven_bound_is_never_shown_smaller_and_a_measured_one_never_larger(
    low, ceiling, words
) -> None:
    """Nor are they shown as equal."""
    found = [finding("reidentification", low, 0.6, ceiling=ceiling)]
    assert words in str(sn.Policy.unjudged().judge(found, sn.PrivacyCost()))


def test_privacy_costs_are_judged_and_unknown_is_infinite() -> None:
    policy = sn.Policy({"max_bits_per_answer": 10, "max_mu_per_answer": 2})
    assert policy.judge([], sn.PrivacyCost(bits=5, mu=1)).outcome == "pass"
    assert policy.judge([], sn.PrivacyCost(bits=5)).outcome == "fail"
    assert sn.PrivacyCost().bits == math.inf


def test_every_limit_can_be_set() -> None:
    for name in (*declared().limits(), *PROVEN_NAMES):
        assert sn.Policy({name: 0.5}).limits == {name: 0.5}


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_leak": 0.1}, "A policy has no limit max_leak. Do you mean max_leakage"),
        ({"max_leakage": -1}, "Expected max_leakage to be a finite number >= 0, got -1"),
        ({"max_leakage": math.nan}, "Expected max_leakage to be a finite number >= 0, got nan"),
        ({"max_leakage": math.inf}, "Expected max_leakage to be a finite number >= 0, got inf"),
        ({}, "A policy without a limit passes everything"),
        ({"max_leakage": "low"}, "Expected max_leakage to be a finite number >= 0, got 'low'"),
        ({"max_leakage": True}, "Expected max_leakage to be a finite number >= 0, got True"),
    ],
)
def test_a_bad_limit_never_exists(limits, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        sn.Policy(limits)


def test_a_policy_is_read_from_toml(tmp_path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("max_leakage = 0.05\n")
    assert sn.Policy.load(path) == sn.Policy({"max_leakage": 0.05})
    path.write_text("")
    with pytest.raises(sn.errors.ConfigError, match="without a limit passes everything"):
        sn.Policy.load(path)
    with pytest.raises(sn.errors.DataError, match="No such file"):
        sn.Policy.load(tmp_path / "nowhere.toml")


def test_what_is_required_must_have_been_measured() -> None:
    policy = sn.Policy({}, required=("membership.canaries.auc", "attribute."))
    verdict = policy.judge([finding("attribute.sex.gain", 0, 0.1)], sn.PrivacyCost())
    assert [one.outcome for one in verdict.judgments] == ["fail", "pass"]
    assert "membership.canaries.auc was not measured; it is required" in str(verdict)


class TestSubgroups:
    POLICY = sn.Policy({}, groups={"*": {"max_membership_auc": 0.7, "min_accuracy": 0.8}})
    GROUPS = ("sex = 0", "sex = 1")

    def found(self, high: float):
        return [
            one
            for group in self.GROUPS
            for one in (
                finding(f"membership.group.{group}.auc", 0.5, high),
                finding(f"accuracy.group.{group}", 0.85, 0.95),
            )
        ]

    def test_the_star_stands_for_every_one_that_was_given(self) -> None:
        verdict = self.POLICY.judge(self.found(0.65), sn.PrivacyCost(), groups=self.GROUPS)
        assert len(verdict.judgments) == 4
        assert verdict
        assert self.POLICY.judge(self.found(0.8), sn.PrivacyCost(), None, self.GROUPS).outcome == (
            "inconclusive"
        )

    def test_one_that_was_given_but_not_measured_fails(self) -> None:
        verdict = self.POLICY.judge(self.found(0.65)[:2], sn.PrivacyCost(), groups=self.GROUPS)
        assert verdict.outcome == "fail"
        assert "membership.group.sex = 1.auc was not measured" in str(verdict)

    def test_no_subgroup_at_all_fails_where_every_one_has_a_limit(self) -> None:
        verdict = self.POLICY.judge([], sn.PrivacyCost())
        assert verdict.outcome == "fail"
        assert "no subgroup was given" in str(verdict)

    def test_a_name_stands_for_itself(self) -> None:
        policy = sn.Policy({}, groups={"sex = 1": {"min_accuracy": 0.9}})
        verdict = policy.judge(self.found(0.65), sn.PrivacyCost(), groups=self.GROUPS)
        assert [one.outcome for one in verdict.judgments] == ["inconclusive"]


def test_a_star_in_a_limits_pattern_stands_for_a_column() -> None:
    policy = sn.Policy({"max_attribute_gain": 0.1})
    found = [finding("attribute.sex.gain", 0.2, 0.3), finding("attribute.sex", 0.9, 0.95)]
    verdict = policy.judge(found, sn.PrivacyCost())
    assert [one.words.split(" ")[0] for one in verdict.judgments] == ["attribute.sex.gain"]
    assert verdict.outcome == "fail"


def test_a_verdict_is_true_only_where_all_pass_and_says_what_broke() -> None:
    policy = sn.Policy({"max_leakage": 0.1, "min_accuracy": 0.5})
    good = policy.judge(
        [finding("inversion", 0, 0.05), finding("accuracy", 0.9, 1)], sn.PrivacyCost()
    )
    bad = policy.judge(
        [finding("inversion", 0.2, 0.3), finding("accuracy", 0.9, 1)], sn.PrivacyCost()
    )
    assert good
    assert not bad
    assert repr(good) == "<pass>"
    assert (
        repr(bad)
        == "<fail: inversion 0.250 [0.200, 0.300], max_leakage = 0.1, broken by at least 0.1>"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version = 2\nmax_leakage = 0.1", "Expected version = 1 in .*, got 2"),
        ("version = true\nmax_leakage = 0.1", "Expected version = 1 in .*, got True"),
        ('required = "inversion"', r'Expected required = \["name", ...\] in .*, got \'inversion\''),
        ("required = [3]", r"Expected required to be a list of finding names, got \(3,\)"),
        ('required = [""]', "Expected required to be a list of finding names"),
        ("groups = 3", "Expected groups to be a table of limits, got 3"),
        ("[groups]\nsex = 3", "Expected groups.sex to be a table of limits, got 3"),
        ("[groups.sex]\nmax_leakage = 0.1", "A subgroup has no limit max_leakage. It has: max_mem"),
        ("[groups.sex]\nmin_accuracy = nan", "Expected min_accuracy to be a finite number >= 0"),
        ("[groups.sex]", "without a limit passes everything"),
        ("[max_leakage]", "Expected max_leakage to be a finite number >= 0, got {}"),
        ("max_leakage", "is not valid TOML"),
    ],
)
def test_a_bad_file_is_refused_with_exact_words(tmp_path, text, words) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(sn.errors.ConfigError, match=words):
        sn.Policy.load(path)


def test_the_written_policy_loads_and_knows_every_limit(tmp_path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(init_text())
    assert set(sn.Policy.load(path).limits) == {
        "max_leakage",
        "max_membership_auc",
        "min_accuracy",
        "max_bits_per_answer",
    }
    settings = re.compile(r"^# (?=\w+ = |\w+_1e-\d = |\[groups)", re.MULTILINE)
    path.write_text(settings.sub("", init_text()))
    full = sn.Policy.load(path)
    assert set(full.limits) == {*declared().limits(), *PROVEN_NAMES}
    assert set(full.groups["*"]) == set(declared().limits(of_groups=True))
    assert full.required == ("membership.canaries.auc", "attribute.")


def test_a_policys_hash_names_what_it_asks_in_whatever_order() -> None:
    one = sn.Policy({"max_leakage": 0.1, "min_accuracy": 0.9})
    assert one.hash() == sn.Policy({"min_accuracy": 0.9, "max_leakage": 0.1}).hash()
    assert one.hash() != sn.Policy({"max_leakage": 0.1, "min_accuracy": 0.8}).hash()


def test_without_a_policy_only_a_broken_proof_is_judged() -> None:
    unjudged = sn.Policy.unjudged()
    fine = [finding("inversion", 0.8, 0.9), finding("unheard.of", 0.8, 0.9)]
    verdict = unjudged.judge(fine, PrivacyCost())
    assert verdict.outcome == "not judged"
    assert not verdict
    assert not verdict.broken
    crossed = [*fine, finding("reidentification", 0.3, 0.4, ceiling=0.2)]
    assert unjudged.judge(crossed, PrivacyCost()).outcome == "fail"
    assert str(unjudged) == "no policy: nothing is judged"


def test_the_default_policy_has_a_name() -> None:
    assert sn.Policy.load("default") == sn.Policy()
    assert str(sn.Policy.load("default")).startswith("default policy: max_leakage = 0.1")


def test_a_limit_that_is_misspelled_is_told_from_the_one_that_is_meant() -> None:
    with pytest.raises(sn.errors.ConfigError, match=r"max_leakge\. Do you mean max_leakage\?"):
        sn.Policy({"max_leakge": 0.1})


OUT_OF_RANGE = ({"max_leakage": 10}, {"min_accuracy": 90}, {"max_membership_auc": 1.01})


@pytest.mark.parametrize("limits", OUT_OF_RANGE)
def test_a_limit_that_nothing_could_break_or_keep_is_refused(limits) -> None:
    with pytest.raises(sn.errors.ConfigError, match=r"from 0 to 1, the range of the measurement"):
        sn.Policy(limits)
    with pytest.raises(sn.errors.ConfigError, match="from 0 to 1"):
        sn.Policy({"max_epsilon": 50.0}, groups={"*": {"min_accuracy": 2}})
