import copy
import pickle

import numpy as np
import pandas
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.base import is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import RocCurveDisplay, accuracy_score, get_scorer
from sklearn.model_selection import cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC

import shieldnet as sn

ROWS = 200


@pytest.fixture(scope="module")
def table():
    draw = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "age": draw.integers(20, 70, ROWS).astype(float),
            "école": draw.choice(["HS", "Bä", "PhD"], ROWS),
            "score": draw.normal(size=ROWS),
        }
    )
    frame.loc[::7, "age"] = np.nan
    frame.loc[::5, "école"] = np.nan
    return frame, np.where(frame["score"] > 0, ">50K", "<=50K")


@pytest.fixture(scope="module")
def pipeline(table):
    frame, labels = table
    words = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = ColumnTransformer([("w", words, ["école"]), ("n", numbers, ["age", "score"])])
    return make_pipeline(columns, LogisticRegression()).fit(frame, labels)


def test_a_hardened_pipeline_answers_in_the_words_of_its_classes(table, pipeline) -> None:
    frame, labels = table
    shield = sn.harden(pipeline)
    stated = shield.predict_proba(frame)
    assert (stated == shield(frame)).all()
    assert len(np.unique(stated.max(1).round(6))) <= 4
    assert (shield.predict(frame) == pipeline.predict(frame)).all()
    assert shield.score(frame, labels) == accuracy_score(labels, shield.predict(frame)) > 0.9
    assert shield.classes_.tolist() == ["<=50K", ">50K"]
    assert shield.feature_names_in_.tolist() == ["age", "école", "score"]
    assert shield.n_features_in_ == 3
    assert "Estimator(Pipeline) -> Confidence(bins=4)" in repr(shield)


def test_predict_says_what_was_released_and_not_what_the_estimator_thinks(table, pipeline) -> None:
    frame, _ = table
    shield = sn.Shield(pipeline, sn.RandomizedResponse(0.01))
    told = shield.predict(frame)
    assert 0.2 < (told == pipeline.predict(frame)).mean() < 0.8


@pytest.mark.parametrize(
    ("defense", "settings"),
    [
        (sn.Label(), {"release": "labels"}),
        (sn.Label(), {}),
        (sn.Round(2), {"release": "logits"}),
        (sn.Round(2), {"micro_batch": 64}),
    ],
)
def test_every_release_has_the_same_face(table, pipeline, defense, settings) -> None:
    frame, _ = table
    shield = sn.Shield(pipeline, defense, **settings)
    assert (shield.predict(frame) == pipeline.predict(frame)).all()
    assert shield.predict_proba(frame).shape == (ROWS, 2)
    assert np.allclose(shield.predict_proba(frame).sum(1), 1)


@pytest.mark.parametrize("classes", [[3, 1, 7], [True, False], ["ja", "nein"], [-1, 1]])
def test_classes_of_every_type_come_back(classes) -> None:
    inputs = np.random.default_rng(0).normal(size=(90, 3))
    labels = np.asarray(classes)[np.arange(90) % len(classes)]
    inputs += np.arange(90)[:, None] % len(classes)
    estimator = RandomForestClassifier(20, random_state=0).fit(inputs, labels)
    shield = sn.harden(estimator)
    assert shield.predict(inputs).dtype == labels.dtype
    assert (shield.predict(inputs) == estimator.predict(inputs)).all()
    assert (shield.predict(inputs.tolist()) == shield.predict(inputs)).all()
    assert shield(torch.as_tensor(inputs)).equal(torch.as_tensor(shield.predict_proba(inputs)))
    assert not hasattr(shield, "feature_names_in_")


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_probability_a_row_is_that_of_the_second_class(shape) -> None:
    class Own:
        classes_ = np.array(["no", "yes"])

        def predict_proba(self, inputs):
            return (1 / (1 + np.exp(-inputs[:, 0]))).reshape(shape)

    inputs = np.linspace(-2, 2, 8).reshape(-1, 1)
    shield = sn.Shield(Own(), sn.Round(2))
    assert np.allclose(
        shield.predict_proba(inputs)[:, 1], (1 / (1 + np.exp(-inputs[:, 0]))), atol=0.01
    )
    assert shield.predict(inputs).tolist() == ["no"] * 4 + ["yes"] * 4


def test_an_estimator_that_says_no_classes_gets_their_numbers() -> None:
    class Own:
        def predict_proba(self, inputs):
            return np.eye(3)[inputs[:, 0].astype(int)]

    assert sn.harden(Own()).predict(np.array([[2.0], [0.0], [1.0]])).tolist() == [2, 0, 1]


def test_several_yes_or_no_of_their_own_are_labels_by_row() -> None:
    inputs = np.random.default_rng(0).normal(size=(60, 3))
    labels = (inputs > 0).astype(int)
    estimator = OneVsRestClassifier(LogisticRegression()).fit(inputs, labels)
    shield = sn.Shield(estimator, sn.Round(1), outputs="binary_probabilities")
    assert (shield.predict(inputs) == estimator.predict(inputs)).mean() > 0.9
    assert shield.score(inputs, labels) > 0.8
    for release in ("logits", "labels"):
        other = sn.Shield(estimator, sn.Round(1), outputs="binary_probabilities", release=release)
        assert (other.predict(inputs) == estimator.predict(inputs)).mean() > 0.9


def test_texts_and_series_are_inputs_like_any() -> None:
    texts = ["good film", "bad film", "very good", "very bad"] * 5
    labels = ["pos", "neg"] * 10
    estimator = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, labels)
    shield = sn.harden(estimator)
    assert shield.predict(texts).tolist() == labels
    assert shield.predict(pandas.Series(texts)).tolist() == labels


def test_rows_of_sparse_matrices_are_tried_like_any(table) -> None:
    inputs = np.random.default_rng(0).normal(size=(40, 3))
    estimator = LogisticRegression().fit(inputs, inputs[:, 0] > 0)
    shield = sn.harden(estimator)
    assert (shield.predict(csr_matrix(inputs)) == estimator.predict(inputs)).all()
    assert shield.trial.enough == 80

    class Mixing:
        def predict_proba(self, inputs):
            share = np.asarray(inputs.mean(0)).reshape(-1)[0] + inputs.toarray()[:, 0]
            return np.stack([share, -share], 1) / 10 + 0.5

    with pytest.raises(sn.errors.AnswerError, match="Rows of a batch change each other"):
        sn.harden(Mixing()).predict(csr_matrix(inputs))


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("decision_function", r"Call shield.predict_proba\(inputs\) instead"),
        ("predict_log_proba", r"numpy.log\(shield.predict_proba\(inputs\)\)"),
        ("set_params", r"Call shield.predict\(inputs\) or"),
    ],
)
def test_what_would_go_around_the_shield_is_refused_by_name(pipeline, name, instead) -> None:
    shield = sn.harden(pipeline)
    with pytest.raises(sn.errors.BypassError, match=f"shield.{name} is blocked.*{instead}"):
        getattr(shield, name)
    assert not hasattr(shield, name)
    assert getattr(shield.model.estimator, name)


def test_a_shield_does_not_learn(table, pipeline) -> None:
    with pytest.raises(sn.errors.BypassError, match="fit the estimator by itself"):
        sn.harden(pipeline).fit(*table)


def test_what_the_estimator_does_not_have_the_shield_does_not_have(pipeline) -> None:
    shield = sn.harden(pipeline)
    for name in ("transform", "coef_", "_private", "no_such"):
        with pytest.raises(AttributeError, match="has no attribute|is blocked, as what"):
            getattr(shield, name)


def test_scikit_learn_takes_it_for_a_fitted_classifier(table, pipeline) -> None:
    frame, labels = table
    shield = sn.harden(pipeline)
    assert is_classifier(shield)
    assert get_scorer("roc_auc")(shield, frame, labels) > 0.95
    assert RocCurveDisplay.from_estimator(shield, frame, labels).roc_auc > 0.95
    importance = permutation_importance(shield, frame, labels, n_repeats=2, random_state=0)
    assert importance.importances_mean.argmax() == 2
    calibrated = CalibratedClassifierCV(FrozenEstimator(shield)).fit(frame, labels)
    assert calibrated.score(frame, labels) > 0.9
    with pytest.raises(TypeError, match="Cannot clone"):  # it would have to be fitted anew
        cross_val_score(shield, frame, labels)


def test_it_is_copied_and_pickled(table, pipeline) -> None:
    frame, _ = table
    shield = sn.harden(pipeline)
    for other in (copy.deepcopy(shield), pickle.loads(pickle.dumps(shield))):  # noqa: S301
        assert (other.predict(frame) == shield.predict(frame)).all()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (LogisticRegression(), "got LogisticRegression, which is not fitted yet"),
        (
            make_pipeline(StandardScaler(), LogisticRegression()),
            "got Pipeline, which is not fitted",
        ),
        (LogisticRegression, "got the class LogisticRegression. Pass an instance"),
        (3, "or a function of arrays; got int"),
        (SVC(), r"got SVC, which has no predict_proba. .* CalibratedClassifierCV"),
        (LinearRegression(), r"got LinearRegression, which is not fitted yet. Call fit\(inputs, t"),
    ],
)
def test_what_is_no_fitted_estimator_is_refused_with_the_way(model, words) -> None:
    for wrap in (sn.harden, sn.Shield):
        with pytest.raises(sn.errors.ConfigError, match=words):
            wrap(model)


def test_one_class_and_several_targets_are_refused() -> None:
    inputs = np.zeros((4, 1))
    lonely = DummyClassifier().fit(inputs, ["yes"] * 4)
    with pytest.raises(sn.errors.ConfigError, match=r"at least two classes, got one: \['yes'\]"):
        sn.harden(lonely)
    several = RandomForestClassifier(5).fit(np.arange(8).reshape(-1, 1), np.eye(8, 2, dtype=int))
    with pytest.raises(sn.errors.ConfigError, match="one target, got several"):
        sn.harden(several)


def test_an_answer_of_another_number_of_classes_is_refused() -> None:
    class Wrong:
        classes_ = np.array(["a", "b", "c"])

        def predict_proba(self, inputs):
            return np.full((len(inputs), 2), 0.5)

    with pytest.raises(sn.errors.AnswerError, match=r"each of its 3 classes, got shape \(2, 2\)"):
        sn.harden(Wrong()).predict(np.eye(2))


def test_a_shield_around_a_function_has_no_face() -> None:
    shield = sn.Shield(lambda inputs: np.full((len(inputs), 2), 0.5), sn.Round(1))
    assert shield(np.eye(3)).shape == (3, 2)
    assert not hasattr(shield, "predict_proba")


def test_the_classes_of_an_estimator_are_known_before_it_answers(pipeline, table) -> None:
    shield = sn.harden(pipeline)
    stated = shield.certificate().cost
    assert stated.bits < float("inf")
    shield(table[0])
    assert shield.certificate().cost == stated


def test_other_classes_than_an_estimator_has_are_refused_before_it_answers() -> None:
    class Five:
        classes_ = np.arange(5)

        def predict_proba(self, inputs):
            return np.full((len(inputs), 5), 0.2)

    shield = sn.harden(Five())
    assert shield.certificate(classes=5).cost == shield.certificate().cost
    with pytest.raises(sn.errors.ConfigError, match="has 5 classes, not 2"):
        shield.certificate(classes=2)
