"""Pipelines that read words and missing values: asked by tables, attacked by codes."""

import numpy as np
import pandas
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import nn

import shieldnet as sn
from shieldnet.auditing.tables import Given, TableModel
from shieldnet.shield.settings import ShieldSettings

ROWS = 150
COLUMNS = ["age", "education", "education_num", "smokes", "score"]


def a_table(seed: int, rows: int = ROWS) -> pandas.DataFrame:
    draw = np.random.default_rng(seed)
    table = pandas.DataFrame(
        {
            "age": draw.integers(20, 70, rows).astype(float),
            "education": draw.choice(["HS", "Bä", "PhD"], rows),
            "education_num": draw.integers(1, 9, rows),
            "smokes": draw.random(rows) < 0.5,
            "score": draw.normal(size=rows),
        }
    )
    table.loc[draw.random(rows) < 0.1, "age"] = np.nan
    table.loc[draw.random(rows) < 0.1, "education"] = np.nan
    return table


def labels_of(table: pandas.DataFrame) -> np.ndarray:
    return np.where(table["score"] + (table["education"] == "PhD") > 0.3, ">50K", "<=50K")


def a_pipeline(last=None, unknown: str = "error"):
    words = make_pipeline(
        SimpleImputer(strategy="constant", fill_value="?"), OneHotEncoder(handle_unknown=unknown)
    )
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    parts = [("w", words, ["education"]), ("n", numbers, ["age", "education_num", "score"])]
    columns = ColumnTransformer([*parts, ("b", "passthrough", ["smokes"])])
    return make_pipeline(columns, last or DecisionTreeClassifier(random_state=0))


@pytest.fixture(scope="module")
def sets() -> dict[str, tuple[pandas.DataFrame, np.ndarray]]:
    tables = (a_table(seed) for seed in range(3))
    names = ("members", "nonmembers", "auxiliary")
    return {name: (table, labels_of(table)) for name, table in zip(names, tables, strict=True)}


@pytest.fixture(scope="module")
def pipeline(sets):
    return a_pipeline().fit(*sets["members"])


class Watched:
    """Keeps what a pipeline is asked."""

    def __init__(self, pipeline) -> None:
        self.pipeline = pipeline
        self.asked: list[pandas.DataFrame] = []
        self.classes_ = pipeline.classes_
        self.feature_names_in_ = pipeline.feature_names_in_

    def predict_proba(self, table):
        self.asked.append(table)
        return self.pipeline.predict_proba(table)


@pytest.mark.usefixtures("brief_networks")
def test_a_pipeline_is_asked_by_tables_of_its_own_form_alone(sets, pipeline) -> None:
    watched = Watched(pipeline)
    tier = sn.Tier(
        "few", (sn.attacks.Inversion(), sn.attacks.Extraction(), sn.attacks.AttributeRecovery())
    )
    report = sn.audit(
        sn.Shield(watched, sn.Round(1)),
        **sets,
        sensitive=("education", "age"),
        tier=tier,
        engine="inline",  # what was asked is kept in this process
    )
    every = pandas.concat([table for table, _ in sets.values()])
    for table in watched.asked:
        assert list(table) == COLUMNS
        assert set(table["education"].dropna()) <= {"HS", "Bä", "PhD"}
        assert table["education_num"].dtype == np.int64
        assert table["smokes"].dtype == bool
        assert set(table["age"].dropna()) <= set(every["age"].dropna())
        assert table["score"].between(every["score"].min(), every["score"].max()).all()
    assert sum(map(len, watched.asked)) > 5 * ROWS  # inputs of the attacks' own making, too
    assert report.columns[:5] == (
        *("age", "age=missing", "education=Bä", "education=HS", "education=PhD"),
    )
    shield = report["shield"]
    assert shield["attribute.education"].samples == ROWS
    assert shield["attribute.education.gain"].value > 0
    assert "extraction.fidelity" in {finding.name for finding in shield.findings}
    assert report.title == "Audit of Watched"


def test_labels_are_told_by_words_and_the_model_is_as_accurate_as_it_is(sets, pipeline) -> None:
    report = sn.audit(sn.harden(pipeline, "strict"), **sets, tier="quick")
    table, labels = sets["nonmembers"]
    accuracy = (pipeline.predict(table) == labels).mean()
    assert report["bare"]["accuracy"].value == pytest.approx(accuracy)
    assert report["shield"]["accuracy"].value == pytest.approx(accuracy)
    again = sn.audit(sn.harden(pipeline, "strict"), **sets, tier="quick")
    assert again["shield"].findings == report["shield"].findings


def test_columns_in_another_order_and_columns_beside_change_nothing(sets, pipeline, caplog) -> None:
    shield = sn.harden(pipeline, "strict")
    tier = sn.Tier("few", (sn.attacks.Inversion(),))
    plain = sn.audit(shield, **sets, tier=tier)
    table, labels = sets["nonmembers"]
    other = table[COLUMNS[::-1]].assign(id=range(ROWS)).set_index(pandas.Index(range(7, 7 + ROWS)))
    with caplog.at_level("INFO", "shieldnet"):
        moved = sn.audit(shield, **{**sets, "nonmembers": (other, list(labels))}, tier=tier)
    assert moved["shield"].findings == plain["shield"].findings
    assert "The model ignores: id" in caplog.text


def test_shadows_are_trained_on_tables_by_the_users_own_function(sets) -> None:
    seen = []

    def train(data, seed):
        seen.append(data)
        return a_pipeline(LogisticRegression()).fit(*data)

    report = sn.audit(
        sn.harden(a_pipeline(LogisticRegression()).fit(*sets["members"])),
        **sets,
        train=train,
        shadows=4,
        tier=sn.Tier("few", (sn.attacks.Membership(),)),
        engine="inline",
    )
    names = {finding.name for finding in report["bare"].findings}
    assert "membership.LiRA.auc" in names
    for table, labels in seen:
        assert list(table) == COLUMNS
        assert set(labels) == {"<=50K", ">50K"}
        assert (labels_of(table) == labels).all()


def test_a_class_that_a_shadow_never_saw_has_probability_0() -> None:
    inputs = np.arange(12.0).reshape(-1, 1)
    few = DecisionTreeClassifier().fit(inputs[:8], ["a"] * 4 + ["c"] * 4)
    model = TableModel(sn.Shield(few).model, None, np.array(["a", "b", "c"]))
    assert model(torch.from_numpy(inputs[[0, 7]])).tolist() == [[1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("classes", [[1, 2], [True, False], ["1", "0"], [-1.0, 1.0]])
def test_labels_of_every_type_are_numbered_by_the_estimators_classes(classes) -> None:
    inputs = np.random.default_rng(0).normal(size=(90, 3))
    labels = np.asarray(classes)[(inputs[:, 0] > 0).astype(int)]
    shield = sn.harden(LogisticRegression().fit(inputs, labels), "strict")
    parts = [(inputs[part::3], labels[part::3]) for part in range(3)]
    if classes[0] == "1":  # as a file without types would give them
        parts[1] = (parts[1][0], parts[1][1].astype(int))
    report = sn.audit(
        shield,
        members=parts[0],
        nonmembers=parts[1],
        auxiliary=(torch.from_numpy(parts[2][0]), list(parts[2][1])),
        tier=sn.Tier("use", (sn.attacks.Inversion(),)),
    )
    assert report["shield"]["accuracy"].value > 0.9


def test_arrays_of_words_are_tables_for_an_estimator_that_was_fitted_on_such() -> None:
    tables = [a_table(seed)[["education", "score"]].fillna("?") for seed in range(2)]
    arrays = [table.to_numpy(dtype=object) for table in tables]
    labels = [np.where(table["education"] == "PhD", "yes", "no") for table in tables]
    columns = ColumnTransformer([("w", OneHotEncoder(), [0]), ("n", StandardScaler(), [1])])
    pipeline = make_pipeline(columns, LogisticRegression()).fit(arrays[0], labels[0])
    report = sn.audit(
        sn.harden(pipeline),
        members=(arrays[0], labels[0]),
        nonmembers=(arrays[1], labels[1]),
        tier=sn.Tier("use", (sn.attacks.Reidentification(),)),
    )
    assert report["bare"]["accuracy"].value == 1
    assert report.columns[0] == "column 0=?"


def test_missing_numbers_of_arrays_reach_an_estimator_that_takes_them() -> None:
    draw = np.random.default_rng(0)
    parts = []
    for _ in range(2):
        inputs = draw.normal(size=(ROWS, 3))
        labels = inputs[:, 0] > 0
        inputs[draw.random((ROWS, 3)) < 0.1] = np.nan
        parts.append((inputs, labels))
    pipeline = make_pipeline(SimpleImputer(), DecisionTreeClassifier(random_state=0))
    report = sn.audit(
        sn.harden(pipeline.fit(*parts[0])),
        members=parts[0],
        nonmembers=parts[1],
        tier=sn.Tier("use", (sn.attacks.Reidentification(),)),
    )
    assert report["bare"]["accuracy"].value > 0.8
    assert report.columns[1] == "column 0=missing"


def test_an_estimator_of_names_without_scikit_learns_signs_is_asked_by_tables() -> None:
    class Own:
        classes_ = np.array([0, 1])

        def predict_proba(self, table):
            positive = (table["b"] > 0).to_numpy(float)
            return np.stack([1 - positive, positive], 1)

    tables = [a_table(seed)[["score", "education_num"]] for seed in range(2)]
    for table in tables:
        table.columns = ["b", "a"]
    report = sn.audit(
        sn.harden(Own()),
        members=(tables[0], tables[0]["b"] > 0),
        nonmembers=(tables[1], tables[1]["b"] > 0),
        tier=sn.Tier("use", (sn.attacks.Reidentification(),)),
    )
    assert report["bare"]["accuracy"].value == 1


def test_texts_are_not_audited(pipeline) -> None:
    texts = pandas.Series(["good", "bad"] * 20)
    shield = sn.harden(pipeline)
    labels = [">50K", "<=50K"] * 20
    with pytest.raises(sn.errors.DataError, match="a single column; texts cannot be audited"):
        sn.audit(shield, members=(texts, labels), nonmembers=(texts, labels))


def test_a_function_of_tables_is_asked_by_tables(sets) -> None:
    def answer(table):
        is_phd = (table["education"] == "PhD").to_numpy(float)
        return np.stack([1 - is_phd, is_phd], 1)

    numbered = {
        name: (table, (labels == ">50K").astype(int)) for name, (table, labels) in sets.items()
    }
    tier = sn.Tier("few", (sn.attacks.AttributeRecovery(),))
    report = sn.audit(sn.Shield(answer, sn.Label()), **numbered, sensitive=["education"], tier=tier)
    assert report["shield"]["attribute.education.gain"].low > 0.2


def test_a_table_of_numbers_goes_to_a_pipeline_by_its_names(sets) -> None:
    """Arrays would make scikit-learn warn, or a ColumnTransformer fail."""
    names = ["age", "score"]
    parts = {
        name: (table[names].fillna(0).to_numpy(), labels) for name, (table, labels) in sets.items()
    }
    frame = pandas.DataFrame(parts["members"][0], columns=names)
    columns = ColumnTransformer([("n", StandardScaler(), ["score"])])
    pipeline = make_pipeline(columns, LogisticRegression()).fit(frame, parts["members"][1])
    tier = sn.Tier("use", (sn.attacks.Reidentification(),))
    report = sn.audit(sn.harden(pipeline), **parts, tier=tier)
    assert report.columns == ("age", "score")


def test_an_unseen_word_is_the_pipelines_own_affair(sets, pipeline) -> None:
    table, labels = sets["nonmembers"]
    other = table.assign(education=table["education"].replace("HS", "never seen"))
    given = {**sets, "nonmembers": (other, labels)}
    with pytest.raises(sn.errors.DataError, match="Among the nonmembers: .*unknown categories"):
        sn.audit(sn.harden(pipeline), **given, tier="quick")
    lenient = a_pipeline(unknown="ignore").fit(*sets["members"])
    tier = sn.Tier("few", (sn.attacks.Inversion(),))
    report = sn.audit(sn.harden(lenient), **given, tier=tier)
    assert "education=never seen" in report.columns


def test_sets_of_one_row_are_not_tested_and_end_nothing(sets, pipeline) -> None:
    table, labels = sets["nonmembers"]
    report = sn.audit(
        sn.harden(pipeline),
        **{**sets, "nonmembers": (table[:1], labels[:1])},
        tier=sn.Tier("few", (sn.attacks.Inversion(),)),
    )
    assert any("at least" in reason for reason in report["shield"].untested)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"members": "drop age"}, "The members lack columns that the model needs: age"),
        ({"nonmembers": "labels"}, r"nonmembers among the classes of .* \(<=50K, >50K\), got 'x'"),
        ({"nonmembers": "no labels"}, "2 labels of the nonmembers are missing"),
        ({"auxiliary": "Inf"}, "finite numbers in the column score, got Inf"),
        ({"auxiliary": "mixed"}, "education_num to be of one kind in every table"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(sets, pipeline, changes, words) -> None:
    ((role, change),) = changes.items()
    table, labels = sets[role]
    given = {
        "drop age": lambda: (table.drop(columns="age"), labels),
        "labels": lambda: (table, ["x", *labels[1:]]),
        "no labels": lambda: (table, [None, *labels[1:-1], float("nan")]),
        "Inf": lambda: (table.assign(score=np.inf), labels),
        "mixed": lambda: (table.assign(education_num="one"), labels),
    }[change]()
    with pytest.raises(sn.errors.DataError, match=words):
        sn.audit(sn.harden(pipeline), **{**sets, role: given}, tier="quick")


def without_smokes(sets):
    """Returns a pipeline that does not read the column, which stays in the sets."""
    columns = ColumnTransformer(
        [("n", make_pipeline(SimpleImputer(), StandardScaler()), ["age", "score"])]
    )
    table, labels = sets["members"]
    return make_pipeline(columns, LogisticRegression()).fit(table[["age", "score"]], labels)


def test_a_sensitive_column_that_the_model_does_not_read_is_audited_beside_it(sets) -> None:
    shield = sn.harden(without_smokes(sets), "strict")
    tier = sn.Tier(
        "few",
        (
            *(sn.attacks.Inversion(), sn.attacks.Extraction()),
            *(sn.attacks.AttributeRecovery(), sn.attacks.AttributeInference()),
        ),
    )
    plain = sn.audit(shield, **sets, tier=tier)
    report = sn.audit(shield, **sets, sensitive=["smokes", "education"], tier=tier)
    for name in ("smokes", "education"):
        gain = report["shield"][f"attribute.{name}.gain"]
        assert (gain.value, gain.low, gain.high, gain.samples) == (0, 0, 0, ROWS)
        assert gain.note.endswith("the model does not read this column, so its answers add nothing")
        gain = report["shield"][f"attribute_inference.{name}.gain"]
        assert (gain.low, gain.high) == (0, 0)
    others = [one for one in report["shield"].findings if not one.name.startswith("attribute")]
    assert tuple(others) == plain["shield"].findings  # nothing else is diluted by it
    assert report.columns == plain.columns


def test_records_that_differ_in_unread_columns_alone_are_told_from_copies(sets) -> None:
    table, labels = sets["nonmembers"]
    copies = sets["members"][0].head(4).assign(smokes=[True] * 4, education="other")
    given = {
        **sets,
        "nonmembers": (pandas.concat([table, copies]), [*labels, *sets["members"][1][:4]]),
    }
    shield = sn.harden(without_smokes(sets), "strict")
    tier = sn.Tier("few", (sn.attacks.AttributeRecovery(),))
    words = r"differ only in columns that the model does not read \(education, education_num,"
    with pytest.raises(sn.errors.DataError, match=words):
        sn.audit(shield, **given, sensitive=["smokes"], tier=tier)
    report = sn.audit(shield, **given, sensitive=["smokes"], tier=tier, duplicates="drop")
    assert report["shield"]["attribute.smokes.gain"].samples == ROWS


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smoke", "There is no column smoke. Do you mean smokes?"),
        ("educatoin", "Do you mean education?"),
        ("score", ""),
        ("zip", "The columns are: age, education, education_num, smokes, score."),
    ],
)
def test_a_sensitive_name_that_is_no_column_is_refused_with_the_nearest(
    sets, pipeline, name, words
) -> None:
    tier = sn.Tier("few", (sn.attacks.AttributeRecovery(),))
    if not words:
        report = sn.audit(sn.harden(pipeline), **sets, sensitive=[name], tier=tier)
        assert f"attribute.{name}.gain" in {finding.name for finding in report.findings}
        return
    with pytest.raises(sn.errors.DataError) as refused:
        sn.audit(sn.harden(pipeline), **sets, sensitive=[name], tier=tier)
    assert words in str(refused.value)


def test_a_prefix_of_one_column_s_name_is_not_taken_for_the_column() -> None:
    from shieldnet.attacks.secrets import places_of

    words = ("personal_status=single", "personal_status=married", "age")
    assert places_of(words, "personal_status") == (0, 1)
    assert places_of(("job_a", "job_b", "age"), "job") == (0, 1)
    for columns in (words, ("personal_status", "age")):
        with pytest.raises(sn.errors.DataError, match="Do you mean personal_status?"):
            places_of(columns, "personal")


def test_names_and_canaries_do_not_go_with_a_table(sets, pipeline) -> None:
    with pytest.raises(sn.errors.ConfigError, match="Expected no columns beside a table"):
        sn.audit(sn.harden(pipeline), **sets, columns=("a", "b"), tier="quick")
    planted = sn.plant_canaries((torch.randn(40, 3), torch.arange(40) % 2), count=4)
    with pytest.raises(sn.errors.ConfigError, match="Expected no canaries"):
        sn.audit(sn.harden(pipeline), **sets, canaries=planted, tier="quick")


def test_a_network_refuses_words_and_names_the_way_that_works(sets) -> None:
    shield = sn.harden(nn.Linear(5, 2))
    with pytest.raises(sn.errors.DataError, match=r"in: education, smokes\. .*sn.harden\(pipeline"):
        sn.audit(shield, **sets, tier="quick")


def test_an_estimator_is_audited_behind_a_shield(pipeline, sets) -> None:
    with pytest.raises(sn.errors.ConfigError, match=r"got Pipeline. Put one around it"):
        sn.audit(pipeline, **sets)


def test_networks_are_given_as_they_are() -> None:
    shields = {"bare": sn.Shield(nn.Linear(2, 2), ShieldSettings())}
    given = Given(shields, {"members": 1}, ("a",), None)
    assert given.as_codes(None) is given
