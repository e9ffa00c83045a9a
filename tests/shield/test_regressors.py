"""Fitted regressors behind a shield: what they show, and what is no regressor."""

import copy
import pickle

import numpy as np
import pandas
import pytest
from sklearn.base import is_regressor
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.cross_decomposition import PLSRegression
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingRegressor,
    IsolationForest,
    VotingRegressor,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.impute import SimpleImputer
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

import shieldnet as sn
from shieldnet.core.errors import AnswerError, BypassError, ConfigError, DataError

ROWS = 300
INPUTS = np.random.default_rng(0).normal(size=(ROWS, 4))
TARGETS = INPUTS @ [1.0, 2.0, 3.0, 4.0]
BOTH = np.stack([TARGETS, INPUTS[:, 0] - TARGETS], 1)
LABELS = (TARGETS > 0).astype(int)
CHAIN = (sn.ClipRange(-8, 8), sn.RoundTo(0.5))


class Duck:
    """Has what some libraries' regressors have, without scikit-learn's base."""

    _estimator_type = "regressor"

    def predict(self, inputs):
        return inputs[:, 0].round().astype(int)


class OfSeries(Duck):
    def predict(self, inputs):
        return pandas.Series(inputs[:, 0])


class OfNoBase:
    """Says nothing of what it is, as a booster of its own library."""

    def predict(self, inputs):
        return inputs[:, 0]


class BrokenTags(OfNoBase):
    def __sklearn_tags__(self):
        raise AttributeError("no base")


@pytest.mark.parametrize(
    ("regressor", "targets"),
    [
        (GradientBoostingRegressor(n_estimators=5), TARGETS),
        (LinearRegression(), BOTH),
        (PLSRegression(2), BOTH),
        (TransformedTargetRegressor(Ridge(), func=np.arcsinh, inverse_func=np.sinh), TARGETS),
        (GridSearchCV(Ridge(), {"alpha": [0.1, 1]}, cv=2), TARGETS),
        (make_pipeline(StandardScaler(), GridSearchCV(Ridge(), {"alpha": [1]}, cv=2)), TARGETS),
        (VotingRegressor([("a", Ridge()), ("b", LinearRegression())]), TARGETS),
    ],
)
def test_a_regressor_releases_values_and_answers_in_its_own_words(regressor, targets) -> None:
    regressor.fit(INPUTS, targets)
    shield = sn.Shield(regressor, *CHAIN)
    told = shield.predict(INPUTS)
    assert shield.release == "values"
    assert told.shape == targets.shape
    assert np.abs(told - regressor.predict(INPUTS).clip(-8, 8)).max() <= 0.25
    assert set((told * 2).flatten()) <= set(range(-16, 17))
    assert shield.score(INPUTS, targets) == pytest.approx(r2_score(targets, told))
    weights = np.arange(1.0, ROWS + 1)
    weighted = r2_score(targets, told, sample_weight=weights)
    assert shield.score(INPUTS, targets, sample_weight=weights) == pytest.approx(weighted)
    for other in (
        sn.Shield.around(regressor, *CHAIN),
        sn.Shield.around(regressor.predict, *CHAIN),
        sn.Shield(regressor.predict, *CHAIN),
        copy.deepcopy(shield),
        pickle.loads(pickle.dumps(shield)),  # noqa: S301
    ):
        assert (other.predict(INPUTS) == told).all()
        assert repr(other.model) == repr(shield.model) == f"Estimator({type(regressor).__name__})"


def test_numbers_that_are_missing_are_the_models_own_business() -> None:
    inputs = INPUTS.copy()
    inputs[::9, 0] = np.nan
    regressor = HistGradientBoostingRegressor(max_iter=5).fit(inputs, TARGETS)
    assert sn.Shield(regressor, *CHAIN).score(inputs, TARGETS) > 0.3
    public = sn.harden(regressor, calibrate=inputs)
    assert public.score(inputs, TARGETS) > 0.3


def test_a_shield_shows_what_a_regressor_has_and_nothing_of_a_classifier() -> None:
    table = pandas.DataFrame(INPUTS, columns=list("abcd"))
    regressor = PLSRegression(2).fit(table, TARGETS)
    shield = sn.Shield(regressor, *CHAIN)
    assert shield.n_features_in_ == 4
    assert shield.feature_names_in_.tolist() == list("abcd")
    for name in ("predict_proba", "classes_", "decision_function", "no_such"):
        assert not hasattr(shield, name)
    assert is_regressor(shield)
    found = permutation_importance(shield, table, TARGETS, n_repeats=2, random_state=0)
    assert found.importances_mean.argmax() == 3
    with pytest.raises(BypassError, match=r"transform is blocked.*Call shield.predict\(inputs\) i"):
        _ = shield.transform
    with pytest.raises(AttributeError, match=r"coef_ is blocked, as what PLSRegression learned"):
        _ = shield.coef_
    with pytest.raises(BypassError, match="fit the estimator by itself"):
        shield.fit(table, TARGETS)


@pytest.mark.parametrize("targets", [np.full(4, 2.0), np.full(4, 3.0)])
def test_the_score_of_targets_that_do_not_vary_is_that_of_scikit_learn(targets) -> None:
    regressor = LinearRegression().fit(INPUTS, np.full(ROWS, 2.0))
    shield = sn.Shield(regressor, *CHAIN)
    expected = r2_score(targets, shield.predict(INPUTS[:4]))
    assert shield.score(INPUTS[:4], targets) == expected


@pytest.mark.parametrize("duck", [Duck(), OfSeries()])
def test_what_says_that_it_is_a_regressor_is_one(duck) -> None:
    told = sn.Shield(duck, *CHAIN).predict(INPUTS)
    assert told.dtype == np.float64
    assert told.shape == (ROWS,)


def test_texts_are_inputs_of_a_regressor_like_any() -> None:
    texts = ["good film", "bad film", "very good", "very bad"] * 30
    regressor = make_pipeline(TfidfVectorizer(), Ridge()).fit(texts, [5.0, 1.0, 5.0, 1.0] * 30)
    shield = sn.harden(regressor, calibrate=np.array(texts))
    assert shield.score(pandas.Series(texts), [5.0, 1.0, 5.0, 1.0] * 30) > 0.9


@pytest.mark.parametrize(
    "model", [LinearSVC(), RidgeClassifier(), make_pipeline(StandardScaler(), RidgeClassifier())]
)
def test_a_classifier_without_probabilities_is_no_regressor(model) -> None:
    for wrap in (sn.harden, sn.Shield, sn.Shield.around):
        for given in (model, copy.deepcopy(model).fit(INPUTS, LABELS)):
            with pytest.raises(
                ConfigError, match=r"no predict_proba, and whose predict gives labels. Use SVC\("
            ):
                wrap(given)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            IsolationForest(n_estimators=5).fit(INPUTS),
            "of the type outlier_detector: its predict gives neither",
        ),
        (KMeans(2, n_init=1).fit(INPUTS), "of the type clusterer: its predict gives neither"),
        (OfNoBase(), r"does not say that it is a regressor .* function = model.predict"),
        (BrokenTags(), r"does not say that it is a regressor .* Shield.around\(function, ClipR"),
        (LinearRegression(), r"got LinearRegression, which is not fitted yet. Call fit\(inputs, t"),
        (make_pipeline(StandardScaler(), Ridge()), "got Pipeline, which is not fitted yet"),
        (TransformedTargetRegressor(), "got TransformedTargetRegressor, which is not fitted yet"),
        (GridSearchCV(Ridge(), {"alpha": [1]}), "got GridSearchCV, which is not fitted yet"),
        (LinearRegression, "got the class LinearRegression. Pass an instance"),
    ],
)
def test_what_is_no_fitted_regressor_is_refused_with_the_way(model, words) -> None:
    for wrap in (sn.harden, sn.Shield, sn.Shield.around):
        with pytest.raises(ConfigError, match=words):
            wrap(model)


def test_the_way_that_is_named_for_a_model_that_says_nothing_works() -> None:
    shield = sn.Shield.around(OfNoBase().predict, *CHAIN, outputs="values")
    assert np.abs(shield(INPUTS) - INPUTS[:, 0]).max() <= 0.25


def test_an_answer_that_is_no_array_of_values_is_refused() -> None:
    process = GaussianProcessRegressor().fit(INPUTS, TARGETS)
    with pytest.raises(AnswerError, match=r"GaussianProcessRegressor to return an array .*tuple"):
        sn.Shield(process, *CHAIN)(INPUTS, return_std=True)

    class Cubes(Duck):
        def predict(self, inputs):
            return inputs.reshape(-1, 2, 2)

    with pytest.raises(AnswerError, match=r"\(rows,\) or .* got ndarray of shape \(300, 2, 2\)"):
        sn.Shield(Cubes(), *CHAIN)(INPUTS)


def test_a_preset_measures_its_range_and_says_so_without_public_rows() -> None:
    regressor = make_pipeline(StandardScaler(), Ridge()).fit(INPUTS, TARGETS)
    for given in (regressor, regressor.predict):
        with pytest.raises(ConfigError, match=r"calibrate=public_rows\). Or choose it: sn.Shield"):
            sn.harden(given)
        shield = sn.harden(given, calibrate=INPUTS)
        assert [type(defense).__name__ for defense in shield.defenses] == ["ClipRange", "RoundTo"]
        assert shield.score(INPUTS, TARGETS) > 0.95
    with pytest.raises(DataError, match="at least 100 public rows"):
        sn.harden(regressor, calibrate=INPUTS[:50])
    with pytest.raises(ConfigError, match="For values use ClipRange"):
        sn.Shield(regressor, sn.Confidence(4))


def test_a_shield_of_a_regressor_is_written_and_read_back(tmp_path) -> None:
    table = pandas.DataFrame({"word": ["a", "b", "", "a"] * 50, "number": INPUTS[:200, 0]})
    table.loc[::7, "number"] = np.nan
    table.loc[table["word"] == "", "word"] = np.nan
    words = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())
    columns = ColumnTransformer([("w", words, ["word"]), ("n", SimpleImputer(), ["number"])])
    regressor = make_pipeline(columns, Ridge()).fit(table, TARGETS[:200])
    shield = sn.harden(regressor, "open", calibrate=table)
    (tmp_path / "shield.toml").write_text(sn.dump_shield(shield))
    read = sn.load_shield(regressor, tmp_path / "shield.toml")
    assert read.settings == shield.settings
    assert (read.predict(table) == shield.predict(table)).all()
    (tmp_path / "short.toml").write_text(
        'version = 1\n[[defense]]\nname = "ClipRange"\nlow = 0.0\nhigh = 1.0\n'
    )
    assert sn.load_shield(regressor, tmp_path / "short.toml").release == "values"
    with pytest.raises(ConfigError, match=r"Pipeline is scikit-learn's.*:variable --outputs value"):
        sn.save_hardened(shield, tmp_path / "hardened")


def test_a_classifiers_own_predict_is_a_function_like_any() -> None:
    classifier = LogisticRegression().fit(INPUTS, LABELS)
    with pytest.raises(AnswerError, match="such as a classifier's predict_proba, not its labels"):
        sn.Shield.around(classifier.predict, *CHAIN, outputs="values")(INPUTS)
