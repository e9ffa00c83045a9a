"""The default policy of answers at positions."""

import pytest
from by_hand import finding, made, subject

import shieldnet as sn

TEXTS = (finding("membership.sequences.auc", 0.5, 0.55, baseline=0.5),)
MAPS = (finding("inversion.map", 0.0, 0.04), finding("membership.maps.auc", 0.5, 0.55))


@pytest.mark.parametrize(
    ("findings", "limits"),
    [
        (TEXTS, {"max_sequence_membership_auc": 0.60}),
        (MAPS, {"max_leakage": 0.10, "max_map_membership_auc": 0.60}),
        ((), {"max_leakage": 0.10, "max_membership_auc": 0.60}),
    ],
)
def test_the_default_policy_judges_what_is_measured_of_a_kind_of_answer(findings, limits) -> None:
    report = made(subject("balanced", 0.0, 5.0, findings=findings))
    for policy in (None, "default"):
        assert report.policy_for(policy).limits == limits
        assert {one.limit for one in report.passes(policy).judgments} == set(limits)
    document = report.document(sn.Policy.load("default"))
    assert document["policy"] == limits
    assert report.passes().outcome == ("pass" if findings else "fail")


def test_a_text_that_is_recognized_fails_the_default_policy() -> None:
    told = (finding("membership.sequences.auc", 0.7, 0.8, baseline=0.5),)
    report = made(subject("balanced", 0.0, 5.0, findings=told))
    with pytest.raises(sn.errors.PolicyFailed, match="max_sequence_membership_auc = 0.6"):
        report.require()


def test_limits_that_were_written_down_are_never_exchanged() -> None:
    report = made(subject("balanced", 0.0, 5.0, findings=TEXTS))
    for policy in (sn.Policy(), {"max_leakage": 0.10, "max_membership_auc": 0.60}):
        assert report.passes(policy).outcome == "fail"
