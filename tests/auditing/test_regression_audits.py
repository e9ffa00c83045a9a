"""Audits of regressions with their own targets, from the front door."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from torch import nn

import shieldnet as sn
from shieldnet.core.errors import ConfigError, DataError

DATA = load_diabetes()
ORDER = np.random.default_rng(0).permutation(len(DATA.data))
ROWS = {"members": ORDER[:140], "nonmembers": ORDER[140:280], "auxiliary": ORDER[280:]}


def sets(targets: np.ndarray = DATA.target) -> dict:
    return {name: (DATA.data[rows], targets[rows]) for name, rows in ROWS.items()}


def train(data: tuple, seed: int) -> LinearRegression:
    return LinearRegression().fit(*data)


FITTED = LinearRegression().fit(*sets()["members"])
CHAIN = (sn.ClipRange(25, 350), sn.RoundTo(25))


@pytest.fixture(scope="module")
def report() -> sn.Report:
    shield = sn.Shield.around(FITTED.predict, *CHAIN, outputs="values")
    named = {"columns": tuple(DATA.feature_names), "sensitive": ("sex",)}
    return sn.audit(shield, **sets(), **named, train=train, shadows=8, tier="quick")


def test_a_linear_regression_is_audited_with_its_own_targets(report) -> None:
    bare, shield = report["bare"], report["shield"]
    members = {name: sets()[name] for name in ("members", "nonmembers")}
    assert bare["r2"].value == pytest.approx(FITTED.score(*members["nonmembers"]), abs=1e-3)
    assert 0.2 < shield["r2"].value < bare["r2"].value + 0.05
    assert bare["membership.auc"].threat.shadows in (0, 8)
    assert bare["membership.LiRA by pull.auc"].threat.shadows == 8
    assert bare["attribute.sex.gain"].low > 0.1
    assert "R2 ↑" in report.rows()[0]
    assert "agreement ↑" not in report.rows()[0]
    assert report.verdict(sn.Policy({"min_r2": 0.1, "max_attribute_gain": 1.0}))
    assert not report.verdict(sn.Policy({"min_r2": 0.99}))


def test_the_report_lists_what_did_not_run_in_its_own_words(report) -> None:
    skipped = {line.partition(":")[0] for line in report["shield"].untested}
    assert {"attribution", "masking", "calibration"} <= skipped
    assert not {"membership", "attribute recovery", "inversion"} & skipped
    assert all("rror" not in line for line in report["shield"].untested)


def test_values_behind_noise_are_averaged_and_inferred_from() -> None:
    class Linear(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 150 + 500 * x[:, 2]

    shield = sn.Shield(Linear(), sn.ClipRange(75, 275), sn.GaussianNoise(25.0), outputs="values")
    asked = (sn.attacks.Averaging(queries=(4,)), sn.attacks.AttributeInference())
    given = {name: (x[:60].astype(np.float32), y[:60]) for name, (x, y) in sets().items()}
    named = {"columns": tuple(DATA.feature_names), "sensitive": ("sex",)}
    report = sn.audit(shield, **given, **named, tier=sn.Tier("few", asked), engine="inline")
    names = {finding.name for finding in report["shield"].findings}
    assert {"membership.averaged.4", "attribute_inference.sex.gain"} <= names


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: np.where(y > 200, np.nan, y), "finite targets, got NaN or Inf among those of"),
        (lambda y: np.stack([y, y], 1), "targets of the members as wide as the model's answers, 1"),
        (lambda y: y[:, None, None], r"Expected targets of the members of shape \(140,\) or"),
        (lambda y: y + 1j, "Expected real targets for the members, got torch.complex128"),
    ],
)
def test_targets_that_do_not_fit_are_refused(change, words) -> None:
    shield = sn.Shield.around(FITTED.predict, *CHAIN, outputs="values")
    with pytest.raises(DataError, match=words):
        sn.audit(shield, **sets(change(DATA.target)), tier="quick", shadows=0)


def test_sets_of_two_shapes_are_refused_and_whole_targets_are_not() -> None:
    shield = sn.Shield.around(FITTED.predict, *CHAIN, outputs="values")
    given = sets(DATA.target.astype(int))
    inputs, targets = given["nonmembers"]
    few = sn.Tier("few", (sn.attacks.Membership(),))
    report = sn.audit(shield, **given, tier=few, shadows=0, engine="inline")
    assert report["bare"]["r2"].value > 0.2
    mixed = {**given, "nonmembers": (inputs, targets[:, None])}
    with pytest.raises(DataError, match="targets of members and nonmembers of one shape"):
        sn.audit(shield, **mixed, tier=few, shadows=0)


def test_the_labels_of_a_classifier_stay_whole_numbers() -> None:
    shield = sn.harden(nn.Linear(10, 2))
    with pytest.raises(DataError, match=r"whole-number labels .*labels.long\(\).*outputs='values'"):
        sn.audit(shield, **sets(), tier="quick")
    planted = sn.plant_canaries(sets()["auxiliary"], count=20).canaries
    labeled = sets((DATA.target > 100).astype(int))
    del labeled["auxiliary"]
    with pytest.raises(DataError, match="whole-number labels"):
        sn.audit(shield, **labeled, canaries=planted, tier="quick")


def test_a_train_that_returns_no_model_is_refused_by_its_own_name() -> None:
    shield = sn.Shield.around(FITTED.predict, *CHAIN, outputs="values")
    with pytest.raises(ConfigError, match="to return an nn.Module, got ndarray"):
        sn.audit(shield, **sets(), train=lambda data, seed: np.ones(3), tier="quick")
