import math

import pytest

import shieldnet as sn
from shieldnet.auditing.policy import FINDINGS, PROVEN


def finding(name: str, low: float, high: float, ceiling: float | None = None) -> sn.Finding:
    middle = (low + high) / 2
    return sn.Finding(name, middle, low, high, 400, 0.0, sn.Threat(), "by hand", ceiling)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(0.02, 0.08, "pass"), (0.02, 0.12, "inconclusive"), (0.11, 0.2, "fail"), (0.1, 0.1, "pass")],
)
def test_the_intervals_bound_is_judged_never_the_estimate(low, high, outcome) -> None:
    verdict = sn.Policy({"max_leakage": 0.1}).judge([finding("inversion", low, high)], sn.Price())
    assert verdict.outcome == outcome
    assert "inversion" in str(verdict)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(0.95, 0.99, "pass"), (0.8, 0.95, "inconclusive"), (0, 0.5, "fail")],
)
def test_a_least_accuracy_is_judged_from_the_other_side(low, high, outcome) -> None:
    verdict = sn.Policy({"min_accuracy": 0.9}).judge([finding("accuracy", low, high)], sn.Price())
    assert verdict.outcome == outcome


def test_leakage_is_judged_averaged_too() -> None:
    found = [finding("inversion", 0, 0.05), finding("averaging.256", 0.3, 0.4)]
    assert sn.Policy({"max_leakage": 0.1}).judge(found, sn.Price()).outcome == "fail"


def test_what_could_not_be_measured_fails() -> None:
    verdict = sn.Policy({"max_leakage": 0.1}).judge([], sn.Price())
    assert verdict.outcome == "fail"
    assert "was not measured" in str(verdict)


def test_a_measured_bound_above_its_proof_fails_everything() -> None:
    found = [finding("inversion", 0, 0.01), finding("reidentification", 0.3, 0.4, ceiling=0.2)]
    verdict = sn.Policy({"max_leakage": 0.1}).judge(found, sn.Price())
    assert verdict.outcome == "fail"
    assert "measured at least 0.300, proven at most 0.200" in str(verdict)


def test_prices_are_judged_and_unknown_is_infinite() -> None:
    policy = sn.Policy({"max_bits_per_answer": 10, "max_mu_per_answer": 2})
    assert policy.judge([], sn.Price(bits=5, mu=1)).outcome == "pass"
    assert policy.judge([], sn.Price(bits=5)).outcome == "fail"
    assert sn.Price().bits == math.inf


def test_every_limit_can_be_set() -> None:
    for name in (*FINDINGS, *PROVEN):
        assert sn.Policy({name: 0.5}).limits == {name: 0.5}


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_leak": 0.1}, "A policy has no limit max_leak. It has: max_leakage"),
        ({"max_leakage": -1}, "Expected max_leakage to be a finite number >= 0, got -1"),
        ({"max_leakage": math.nan}, "Expected max_leakage to be a finite number >= 0, got nan"),
        ({"max_leakage": math.inf}, "Expected max_leakage to be a finite number >= 0, got inf"),
        ({}, "A policy without a limit passes everything"),
        ({"max_leakage": "low"}, "Expected max_leakage to be a finite number >= 0, got 'low'"),
        ({"max_leakage": True}, "Expected max_leakage to be a finite number >= 0, got True"),
    ],
)
def test_a_bad_limit_never_exists(limits, words) -> None:
    with pytest.raises(sn.ConfigError, match=words):
        sn.Policy(limits)


def test_a_policy_is_read_from_toml(tmp_path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("max_leakage = 0.05\n")
    assert sn.Policy.load(path) == sn.Policy({"max_leakage": 0.05})
    path.write_text("")
    with pytest.raises(sn.ConfigError, match="without a limit passes everything"):
        sn.Policy.load(path)
    with pytest.raises(sn.DataError, match="No such file"):
        sn.Policy.load(tmp_path / "nowhere.toml")
