"""The report of a folder is judged by what its shield proves, and by all that it says."""

from dataclasses import replace
from pathlib import Path

import pytest
from artifacts import (
    PASSES,
    Two,
    changed_json,
    made,
    measured,
    report_of,
    rewritten,
    shield_of,
)
from by_hand import GUARANTEE
from torch import nn

import shieldnet as sn
from shieldnet.data.hashing import state_hash, weights_hash
from shieldnet.reports.report import Report, as_json_of


@pytest.fixture
def folder(tmp_path) -> Path:
    return made(tmp_path / "hardened")


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Conv2d(1, 3, 1)

    def forward(self, x):
        return self.scores(x)


def undeclared() -> tuple[sn.Shield, Report]:
    """Returns a shield without an extent, and its report of three classes."""
    shield = sn.harden(Two().eval())
    report = report_of(shield_of())
    one = replace(report["balanced"], configuration=shield.settings.digest())
    return shield, replace(report, subjects=(report["bare"], one))


def stating(report: Report, **certificate: object) -> Report:
    one = report["balanced"]
    stated = replace(one, certificate=replace(one.certificate, **certificate))
    return replace(report, subjects=(report["bare"], stated))


@pytest.mark.parametrize("classes", [2, 1000])
def test_a_certificate_of_other_classes_than_the_reports_is_never_written(
    tmp_path, classes
) -> None:
    shield, report = undeclared()
    with pytest.raises(sn.errors.ConfigError, match=f"classes=3, .* got classes={classes}"):
        sn.save_hardened(shield, tmp_path / "hardened", report=report, classes=classes)
    assert not (tmp_path / "hardened").exists()


@pytest.mark.parametrize("classes", [2, 1000])
def test_a_certificate_of_other_classes_than_the_reports_fails(tmp_path, classes) -> None:
    shield, report = undeclared()
    folder = sn.save_hardened(shield, tmp_path / "hardened", classes=classes)
    policy = b"max_bits_per_answer = 4.08\n"
    rewritten(folder, report__json=as_json_of([report]).encode(), policy__toml=policy)
    checked = sn.verify(folder)
    assert checked["report"].result == "fail"
    assert f"of 3 classes, and certificate.json or the shield about {classes}" in (
        checked["report"].words
    )
    assert (checked["policy"].result == "fail") == (classes == 1000)  # by what is proven
    with pytest.raises(sn.errors.VerificationFailed, match="report: "):
        sn.load_hardened(folder, Two)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_bound_that_a_report_states_too_low_meets_no_limit(folder, classes) -> None:
    low = sn.PrivacyCost(bits=0.1, mu=0.0, pure=0.0)
    report = stating(report_of(shield_of()), classes=classes, cost=low)
    policy = b"max_bits_per_answer = 0.2\nmax_mu_per_answer = 1\n"
    rewritten(folder, report__json=as_json_of([report]).encode(), policy__toml=policy)
    checked = sn.verify(folder, model=Two)
    assert checked["report"].result == checked["policy"].result == "fail"
    assert "states 3.5" in checked["policy"].words
    assert "states no bound" in checked["policy"].words


def test_the_bits_of_all_positions_and_heads_are_compared(tmp_path) -> None:
    shield = sn.harden(Segmenter().eval(), axis=1, extent=sn.Extent(3, (4, 4)))
    report = stating(report_of(shield), cost=sn.PrivacyCost(bits=0.1))
    (tmp_path / "policy.toml").write_text("max_bits_per_answer = 0.2\n")
    settings = {"report": report, "policy": tmp_path / "policy.toml"}
    with pytest.raises(sn.errors.VerificationFailed, match="the shield proves 57.3"):
        sn.save_hardened(shield, tmp_path / "hardened", **settings)


def of_guarantee(folder: Path, **changes: object) -> None:
    report = replace(report_of(shield_of()), guarantee=replace(GUARANTEE, **changes))
    rewritten(
        folder, report__json=as_json_of([report]).encode(), policy__toml=b"max_epsilon = 5.0\n"
    )


def test_a_guarantee_of_other_weights_fails(folder, tmp_path) -> None:
    of_guarantee(folder, weights="f" * 64)
    checked = sn.verify(folder)
    assert "guarantee in report.json is of other weights" in checked["report"].words
    assert checked["report"].result == "fail"
    report = replace(report_of(shield_of()), guarantee=replace(GUARANTEE, weights="f" * 64))
    with pytest.raises(sn.errors.VerificationFailed, match="is of other weights"):
        made(tmp_path / "other", report=report)


def test_a_guarantee_of_this_model_or_of_no_weights_yet_passes(folder) -> None:
    for weights in ("", weights_hash(Two())):
        of_guarantee(folder, weights=weights)
        checked = sn.verify(folder)
        assert checked["report"].result == checked["policy"].result == "pass", checked


def test_a_guarantee_of_version_1_is_held_to_the_model_alone(folder) -> None:
    old = {"run": "", "scope": "steps", "premises": ()}
    of_guarantee(folder, weights=state_hash(Two()), **old)
    assert sn.verify(folder)["report"].result == "not checked"
    assert sn.verify(folder, model=Two)["report"].result == "pass"
    of_guarantee(folder, weights="f" * 64, **old)
    assert sn.verify(folder, model=Two)["report"].result == "fail"


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_reports_of_one_shield_the_worst_is_judged(folder, tmp_path, order) -> None:
    reports = [report_of(shield_of()), report_of(shield_of(), leak=0.9)][::order]
    rewritten(folder, report__json=as_json_of(reports).encode())
    checked = sn.verify(folder)
    assert checked["policy"].result == "fail"
    (tmp_path / "both.json").write_text(as_json_of(reports))
    with pytest.raises(sn.errors.PolicyFailed):
        made(tmp_path / "other", report=tmp_path / "both.json")


def test_of_several_names_of_one_shield_in_a_report_the_worst_is_judged(folder) -> None:
    report = report_of(shield_of())
    worse = report_of(shield_of(), leak=0.9, name="again")["again"]
    both = replace(report, subjects=(*report.subjects, worse))
    rewritten(folder, report__json=as_json_of([both]).encode())
    checked = sn.verify(folder)
    assert "(balanced, again)" in checked["report"].words
    assert checked["policy"].result == "fail"


def test_a_report_that_names_no_weights_is_not_checked_without_the_model(folder) -> None:
    report = report_of(shield_of())
    old = replace(report, hashes={"model": report.hashes["model"]})
    rewritten(folder, report__json=as_json_of([old]).encode())
    checked = sn.verify(folder)
    assert checked["report"].result == checked["policy"].result == "not checked"
    assert checked.conclusion.endswith(
        "verifies, except for the signature, the report and the policy, which were not checked."
    )
    assert sn.verify(folder, model=Two)["policy"].result == "pass"


def test_a_stripped_folder_says_what_was_not_checked_and_fails_where_it_is_required(
    folder,
) -> None:
    none = dict.fromkeys(("report__json", "policy__toml", "certificate__json", "certificate__txt"))
    rewritten(folder, **none)
    assert sn.verify(folder).conclusion.endswith(
        "except for the signature, the certificate, the report and the policy, which were not "
        "checked."
    )
    for name in ("signature", "certificate", "report", "policy"):
        checked = sn.verify(folder, require=(name,))
        assert not checked
        assert checked[name].words.startswith("required, and not checked: ")
        with pytest.raises(sn.errors.VerificationFailed, match=f"{name}: required"):
            checked.require()
    with pytest.raises(sn.errors.ConfigError, match="Expected require to be one of files, sig"):
        sn.verify(folder, require=("sigature",))


def test_a_policy_of_ones_own_is_judged_beside_the_folders(folder, tmp_path) -> None:
    """A weaker one in the folder is no help."""
    leaky = report_of(shield_of(), leak=0.9)
    rewritten(folder, report__json=as_json_of([leaky]).encode(), policy__toml=b"max_leakage = 1\n")
    assert sn.verify(folder)
    own = tmp_path / "own.toml"
    own.write_text(PASSES)
    for policy in (own, sn.Policy.load(own)):
        checked = sn.verify(folder, policy=policy)
        assert checked["policy"].result == "fail"
        with pytest.raises(sn.errors.PolicyFailed, match="max_leakage = 0.1"):
            checked.require()
    rewritten(folder, report__json=None, policy__toml=None)
    assert "no report.json that it could judge" in sn.verify(folder, policy=own)["policy"].words


def test_another_report_of_the_same_model_is_left_alone(folder) -> None:
    right = report_of(shield_of())
    other = measured(report_of(shield_of(), leak=0.9), model="0" * 64)
    rewritten(folder, report__json=as_json_of([other, right]).encode())
    assert sn.verify(folder)["policy"].result == "pass"


def test_words_of_files_reach_no_terminal_as_they_are(folder) -> None:
    source = "x\x1b[2J\x1b[Hall good\n\n\u202eok"
    data = changed_json((folder / "certificate.json").read_bytes(), **{source: 1})
    report = report_of(shield_of(), name=source)
    rewritten(folder, certificate__json=data, report__json=as_json_of([report]).encode())
    checked = sn.verify(folder)
    assert "x\\x1b[2J" in checked["report"].words
    assert all(one.words.isprintable() for one in checked.checks)
