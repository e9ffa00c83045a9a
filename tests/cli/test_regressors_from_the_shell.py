"""Regressors of scikit-learn from the shell: tables of words and missing values, real targets."""

from pathlib import Path

import numpy as np
import pandas
import pytest
from shell import Finished, shieldnet

import shieldnet as sn

MODULE = """
import pandas
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import shieldnet as sn

FEATURES = ["mileage", "age", "account"]

def train(data, seed, last=None):
    words = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())
    columns = [("w", words, ["account"]), ("n", SimpleImputer(), ["mileage", "age"])]
    records, targets = data
    last = last or LinearRegression()
    return make_pipeline(ColumnTransformer(columns), last).fit(records[FEATURES], targets)

def members():
    table = pandas.read_csv("members.csv")
    return table, table["price"]

def factory():
    return train(members(), 0)

def trees(data=None, seed=0):
    records, targets = data or members()
    numbers = records[["mileage", "age"]]
    own = HistGradientBoostingRegressor(max_iter=200, min_samples_leaf=2, random_state=seed)
    return own.fit(numbers, targets)

def own_trees():
    return trees()

def method():
    return factory().predict

def served():
    chain = sn.ClipRange(2000, 12000), sn.RoundTo(500)
    return sn.Shield.around(factory().predict, *chain, outputs="values")

def function():
    fitted = factory()
    return lambda records: fitted.predict(records)

pipeline = factory()
unfitted = LinearRegression()
labels = train((members()[0], members()[1] > 8000), 0, RidgeClassifier())
"""
COARSE = """version = 1
outputs = "values"
[[defense]]
name = "ClipRange"
low = 2000.0
high = 12000.0
[[defense]]
name = "RoundTo"
step = 500.0
"""
ROWS = 130


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("regressors")
    draw = np.random.default_rng(0)
    for name in ("members", "nonmembers", "auxiliary", "public"):
        table = pandas.DataFrame(
            {
                "mileage": draw.integers(1000, 90000, ROWS),
                "age": np.where(draw.random(ROWS) < 0.1, np.nan, draw.integers(20, 70, ROWS)),
                "account": draw.choice(["checking", "savings", ""], ROWS),
                "sex": draw.choice(["m", "f"], ROWS),
            }
        )
        price = 9000 - table["mileage"] / 20 + 60 * table["age"].fillna(40)
        price += 1500 * (table["account"] == "checking") + draw.normal(0, 300, ROWS)
        table["price"] = price.round(2)
        kept = ["age", "sex", "mileage", "account"] if name == "public" else list(table)
        table[kept].to_csv(folder / f"{name}.csv", index=False)
    table.rename(columns={"mileage": "miles"}).to_csv(folder / "narrow.csv", index=False)
    table.assign(price="high").to_csv(folder / "words.csv", index=False)
    table.assign(price=np.where(table["sex"] == "m", np.nan, 1.0)).to_csv(
        folder / "missing.csv", index=False
    )
    (folder / "houses.py").write_text(MODULE)
    (folder / "coarse.toml").write_text(COARSE)
    (folder / "lenient.toml").write_text("max_membership_auc = 1.0\nmin_r2 = 0.2\n")
    (folder / "strict.toml").write_text("min_r2 = 0.999\n")
    return folder


def audit(project: Path, model: str, *extra: str, **sets: str) -> Finished:
    names = {name: f"{name}.csv" for name in ("members", "nonmembers", "auxiliary")} | sets
    given = [f"--{role}={name}" for role, name in names.items()]
    fixed = ("--label=price", "--tier=quick", "--json=report.json")
    return shieldnet(project, "audit", model, *given, *fixed, *extra)


def test_a_pipeline_that_predicts_a_number_is_audited_on_tables_as_they_are(project) -> None:
    result = audit(
        project,
        "houses:pipeline",
        "--calibrate=public.csv",
        "--policy=lenient.toml",
        "--train=houses:train",
        "--shadows=4",
        "--sensitive=account",
        "--sensitive=sex",
        "--group=sex",
        "--group=account",
    )
    assert result.returncode == 0, result.stderr
    assert "UserWarning" not in result.stderr
    assert "The model ignores: sex (kept, as it is sensitive)" in result.stderr
    report = sn.Report.load(project / "report.json")
    assert report.columns == (
        *("mileage", "age", "age=missing"),
        *("account=checking", "account=savings", "account=missing"),
    )
    bare, balanced = report["bare"], report["balanced"]
    assert {"sex = f", "account = missing"} < set(report.groups)
    assert balanced["r2.group.account = savings"].value > 0.5
    assert bare["membership.LiRA.auc"].threat.shadows == 4
    assert bare["attribute.account"].samples == ROWS
    assert balanced["attribute.sex.gain"].value == 0
    assert balanced.certificate.shield.startswith("houses:pipeline -> ClipRange(")
    assert balanced.certificate.cost.bits < 6
    assert bare["r2"].value > 0.9
    failed = audit(project, "houses:pipeline", "--calibrate=public.csv", "--policy=strict.toml")
    assert failed.returncode == 1
    assert "fail: balanced: r2" in failed.stderr


@pytest.mark.parametrize("role", ["members", "nonmembers"])
def test_private_rows_are_no_public_ones_of_a_pipeline_that_reads_words(project, role) -> None:
    refused = audit(project, "houses:pipeline", f"--calibrate={role}.csv")
    assert refused.returncode == 2
    assert f"different rows of --calibrate are {role}" in refused.stderr


@pytest.mark.parametrize(
    ("model", "extra"),
    [
        ("houses:factory", ("--shield=coarse.toml",)),
        ("houses:method", ("--shield=coarse.toml",)),
        ("houses:served", ()),
        ("houses:own_trees", ("--calibrate=public.csv", "--preset=strict", "--outputs=values")),
    ],
)
def test_every_form_of_a_regressor_reads_tables_as_they_are(project, model, extra) -> None:
    result = audit(project, model, *extra, "--shadows=0", "--policy=lenient.toml", "--cache=kept")
    assert result.returncode == 0, result.stderr
    report = sn.Report.load(project / "report.json")
    assert report.kind == "values"
    assert "age=missing" in report.columns
    kept = set((project / "kept").iterdir())
    again = audit(project, model, *extra, "--shadows=0", "--policy=lenient.toml", "--cache=kept")
    assert again.returncode == 0
    assert set((project / "kept").iterdir()) == kept
    assert sn.Report.load(project / "report.json").hashes == report.hashes


def test_several_targets_of_an_array_are_its_own(project) -> None:
    (project / "pair.py").write_text(
        "import numpy\nfrom sklearn.linear_model import LinearRegression\n"
        "def model():\n    held = numpy.load('members.npz')\n"
        "    return LinearRegression().fit(held['x'], held['y'])\n"
    )
    draw = np.random.default_rng(1)
    for name in ("members", "nonmembers", "auxiliary", "public"):
        inputs = draw.normal(size=(ROWS, 3))
        targets = inputs @ np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 2.0]])
        np.savez(project / f"{name}.npz", x=inputs, y=targets + draw.normal(size=(ROWS, 2)))
    names = {name: f"{name}.npz" for name in ("members", "nonmembers", "auxiliary")}
    sets = [f"--{role}={name}" for role, name in names.items()]
    result = shieldnet(
        project,
        *("audit", "pair:model", *sets, "--calibrate=public.npz", "--json=report.json"),
        *("--tier=quick", "--shadows=0", "--policy=lenient.toml"),
    )
    assert result.returncode == 0, result.stderr
    assert sn.Report.load(project / "report.json")["bare"].certificate.classes == 2


def test_harden_refuses_a_regressor_that_only_a_pickle_holds_with_what_works(project) -> None:
    given = ("--calibrate=public.csv", "--output=hardened")
    result = shieldnet(project, "harden", "houses:pipeline", *given)
    assert result.returncode == 2
    words = result.stderr.replace("\n", " ")
    assert "A hardened folder holds no pickle: Pipeline is scikit-learn's" in words
    assert "shieldnet audit model.onnx:variable --outputs values --calibrate public.csv" in words
    assert not (project / "hardened").exists()


@pytest.mark.parametrize(
    ("model", "extra", "sets", "words"),
    [
        ("houses:pipeline", (), {}, "give --calibrate public.npz (or a .csv). Or write"),
        ("houses:unfitted", (), {}, "got LinearRegression, which is not fitted yet"),
        ("houses:labels", (), {}, "has no predict_proba, and whose predict gives labels"),
        (
            "houses:function",
            ("--shield=coarse.toml",),
            {},
            "MODEL is a function that returns the pipeline, not its method",
        ),
        ("houses:pipeline", ("--calibrate=narrow.csv",), {}, "The public rows lack columns"),
        (
            "houses:pipeline",
            ("--shield=coarse.toml",),
            {"nonmembers": "narrow.csv"},
            "The nonmembers lack columns that the model needs: mileage",
        ),
        (
            "houses:pipeline",
            ("--shield=coarse.toml",),
            {"members": "words.csv"},
            "Expected numbers as targets of a regression (--outputs values) in words.csv, got",
        ),
        (
            "houses:pipeline",
            ("--shield=coarse.toml",),
            {"members": "missing.csv"},
            "Expected finite targets, got NaN or Inf among those of the members",
        ),
        ("houses:pipeline", ("--shield=coarse.toml", "--sensitive=job"), {}, "no column job"),
        ("houses:missing", (), {}, "a fitted regressor (or one of these itself) or a function of"),
    ],
)
def test_what_does_not_fit_exits_with_2(project, model, extra, sets, words) -> None:
    result = audit(project, model, *extra, **sets)
    assert result.returncode == 2
    assert words in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


def test_the_terminal_names_quarters_of_the_targets_and_no_label(project) -> None:
    given = ("--calibrate=public.csv", "--shadows=0", "--html=report.html")
    result = audit(project, "houses:own_trees", *given)
    assert result.returncode == 0, result.stderr
    words = result.stdout.replace("\n", " ")
    assert "unnamed" not in words
    assert "worst group: quarter" in words
    assert "(by chance: 0.0" in words
    assert "label alone" not in words
    page = (project / "report.html").read_text()
    assert "of each column beyond the mean input, ranked" in page
    for saved in ("report.json", "report.html"):
        written = (project / saved).read_text()
        assert "the label alone" not in written
        assert "beyond its label" not in written
