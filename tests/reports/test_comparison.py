import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import GUARANTEE, finding, made, subject

import shieldnet as sn
from shieldnet.core.statistics import auc, proportion


def of(*findings, **more):
    one = replace(subject("strict", 0.0, 3.3), findings=tuple(findings), untested=())
    return made(one, **more)


def test_a_report_is_no_worse_than_itself(pictured) -> None:
    found = sn.compare(pictured, pictured)
    assert found
    assert found.caveats == ()
    assert {one.direction for one in found.differences} == {"no significant difference"}


@pytest.mark.parametrize(
    ("name", "before", "after", "direction"),
    [
        ("inversion", (0.1, 0.2), (0.4, 0.5), "worse"),
        ("inversion", (0.4, 0.5), (0.1, 0.2), "better"),
        ("inversion", (0.1, 0.2), (0.15, 0.25), "no significant difference"),
        ("accuracy", (0.9, 0.95), (0.5, 0.6), "worse"),
        ("accuracy", (0.5, 0.6), (0.9, 0.95), "better"),
        ("attribute.sex.gain", (0.0, 0.1), (0.5, 0.6), "worse"),
    ],
)
def test_leakage_and_use_are_read_from_their_own_sides(name, before, after, direction) -> None:
    found = sn.compare(of(finding(name, *before)), of(finding(name, *after)))
    assert [one.direction for one in found.differences] == [direction]
    assert bool(found) == (direction != "worse")


def test_what_is_no_measure_of_leakage_or_use_is_left_out() -> None:
    name = "attribution.rank_correlation"
    assert sn.compare(of(finding(name, 0, 0.1)), of(finding(name, 0.9, 1))).differences == ()


def test_what_is_not_measured_any_more_never_passes() -> None:
    found = sn.compare(
        of(finding("inversion", 0, 0.1), finding("accuracy", 0.9, 1)),
        of(finding("accuracy", 0.9, 1)),
    )
    assert found.outcome == "inconclusive"
    with pytest.raises(sn.errors.PolicyInconclusive, match="inversion .* -> no longer measured"):
        found.require()


def test_a_proven_privacy_cost_that_rises_is_worse() -> None:
    one, other = made(subject("strict", 0.0, 3.3)), made(subject("strict", 0.0, 5.3))
    with pytest.raises(sn.errors.PolicyFailed, match=r"bits per answer, proven, 3.30 -> 5.30"):
        sn.compare(one, other).require()
    assert sn.compare(other, one)
    bare = made(subject("strict", 0.0, math.inf))
    assert not sn.compare(one, bare)
    assert sn.compare(bare, bare)


def test_a_training_that_lost_its_guarantee_is_worse() -> None:
    with pytest.raises(sn.errors.PolicyFailed, match="training: epsilon, proven,"):
        sn.compare(made(guarantee=GUARANTEE), made()).require()


def test_other_data_tiers_and_shields_are_said() -> None:
    one = made(subject("a", 0.0, 3.3), subject("b", 0.0, 3.3))
    other = made(
        subject("b", 0.0, 3.3),
        hashes={"nonmembers": "other", "members": "a"},
        environment={"tier": "full", "shieldnet": "0.1.0"},
    )
    said = " ".join(sn.compare(one, other).caveats)
    assert "Only in one of the reports: a." in said
    assert "The nonmembers differ" in said
    assert "tier quick, then full" in said


def test_the_adversarys_records_are_named_as_such() -> None:
    hashes = {"members": "a", "nonmembers": "b"}
    others = made(hashes={**hashes, "auxiliary": "other"})
    said = " ".join(sn.compare(made(hashes={**hashes, "auxiliary": "c"}), others).caveats)
    assert "The auxiliary records differ" in said


def test_why_nothing_passes_is_said_where_nothing_is_worse() -> None:
    leak, use = finding("inversion", 0, 0.1), finding("accuracy", 0.9, 1)
    found = sn.compare(of(leak, use), of(use))
    assert found.missing.startswith(
        "Nothing is significantly worse, but 1 finding is no longer measured, so that"
    )
    assert str(found).splitlines()[-1] == "Findings without a significant difference: 1."


def test_a_new_shield_is_compared_with_nothing_and_never_passes() -> None:
    old, new = subject("balanced", 0.0, 5.3), subject("open", 0.9, 15.0)
    found = sn.compare(made(old), made(old, new))
    assert found.outcome == "inconclusive"
    assert "open: the shield not in the last report -> new" in str(found)
    assert sn.compare(made(old, new), made(old))


def test_shields_of_other_names_are_compared_as_those_to_be_released() -> None:
    found = sn.compare(made(subject("old", 0.0, 3.3)), made(subject("new", 0.5, 3.3)))
    assert {one.shield for one in found.differences} == {"old -> new"}
    assert not found


def test_labels_alone_are_not_missing_their_calibration() -> None:
    calibrated = (finding("inversion", 0, 0.1), finding("calibration.ece", 0, 0.1))
    before = made(subject("balanced", 0.0, 5.3, findings=calibrated))
    labels = subject("strict", 0.0, 3.3, findings=calibrated[:1])
    assert sn.compare(before, made(labels))
    more = subject("open", 0.0, 15.0, findings=calibrated[:1])
    assert sn.compare(before, made(more)).outcome != "pass"


def test_two_measurements_of_the_same_thing_seldom_differ() -> None:
    """Eight findings of nothing new, 300 times: at most 1 in 20 comparisons may see anything."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        pair = []
        for _ in range(2):
            found = []
            for place in range(6):
                interval = proportion(int(rng.binomial(400, 0.1 + 0.1 * place)), 400)
                found.append(sn.Finding.of(f"averaging.{place}", interval, **NOTHING))
            scores = torch.from_numpy(rng.normal(size=(2, 200)))
            found.append(
                sn.Finding.of("membership.auc", auc(scores[0] + 0.3, scores[1]), **NOTHING)
            )
            pair.append(of(*found))
        alarms += sn.compare(*pair).outcome != "pass"
    assert alarms <= 0.05 * 300


NOTHING = {"samples": 400, "baseline": 0.0, "threat": sn.Threat(), "source": "chance"}
