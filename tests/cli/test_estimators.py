"""Pipelines of scikit-learn from the shell: tables as they are, words and missing values."""

from pathlib import Path

import numpy as np
import pandas
import pytest
from shell import Finished, shieldnet

import shieldnet as sn

MODULE = """
import pandas
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

FEATURES = ["age", "education", "sex"]

def train(data, seed):
    words = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = ColumnTransformer([("w", words, ["education", "sex"]), ("n", numbers, ["age"])])
    inputs, labels = data
    return make_pipeline(columns, LogisticRegression()).fit(inputs[FEATURES], labels)

def factory():
    table = pandas.read_csv("members.csv")
    return train((table, table["income"]), 0)

pipeline = factory()
unfitted = LogisticRegression()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    draw = np.random.default_rng(0)
    for name in ("members", "nonmembers", "auxiliary"):
        rows = 120
        table = pandas.DataFrame(
            {
                "age": np.where(draw.random(rows) < 0.1, np.nan, draw.integers(20, 70, rows)),
                "education": draw.choice(["HS-grad", "Bachelors", "", "Dr. é"], rows),
                "sex": draw.choice(["m", "f"], rows),
                "note": draw.normal(size=rows).round(6),
            }
        )
        told = table["age"].fillna(40) + 20 * (table["education"] == "Bachelors")
        table["income"] = np.where(told > 50, ">50K", "<=50K")
        order = list(table) if name == "members" else list(table)[::-1]
        table[order].to_csv(folder / f"{name}.csv", index=False)
    pandas.read_csv(folder / "auxiliary.csv").to_parquet(folder / "auxiliary.parquet")
    (folder / "census.py").write_text(MODULE)
    (folder / "lenient.toml").write_text("max_membership_auc = 1.0\nmin_accuracy = 0.7\n")
    pandas.DataFrame({"age": [1], "income": [">50K"]}).to_csv(folder / "narrow.csv", index=False)
    return folder


def audit(project: Path, *extra: str, model: str = "census:pipeline", **sets: str) -> Finished:
    names = {name: f"{name}.csv" for name in ("members", "nonmembers", "auxiliary")} | sets
    given = [f"--{role}={name}" for role, name in names.items()]
    return shieldnet(
        project,
        "audit",
        model,
        *given,
        "--label=income",
        "--duplicates=drop",
        "--tier=quick",
        *extra,
    )


@pytest.mark.parametrize("model", ["census:pipeline", "census:factory"])
def test_a_pipeline_is_audited_on_tables_of_words_and_missing_values(project, model) -> None:
    result = audit(
        project,
        "--sensitive=education",
        "--group=sex",
        "--policy=lenient.toml",
        "--json=report.json",
        model=model,
        auxiliary="auxiliary.parquet",
    )
    assert result.returncode == 0, result.stderr
    assert "The model ignores: note" in result.stderr
    report = sn.Report.load(project / "report.json")
    assert report.columns == (
        *("age", "age=missing", "education=Bachelors", "education=Dr. é", "education=HS-grad"),
        *("education=missing", "sex=f", "sex=m"),
    )
    assert report.groups == ("sex = f", "sex = m")
    assert report["balanced"]["attribute.education"].samples > 50
    assert report["balanced"]["accuracy"].value > 0.7
    assert report["balanced"].certificate.shield.startswith(f"{model} -> ")
    assert report["bare"].certificate.shield == f"{model}, no defenses"


def test_a_sensitive_column_beside_the_model_and_a_tier_of_ones_own_are_taken(project) -> None:
    (project / "mine.py").write_text(
        "import shieldnet as sn\nFEW = sn.Tier('few', (sn.attacks.AttributeRecovery(),))\n"
    )
    given = ("--sensitive=note", "--tier=mine:FEW", "--cache=beside", "--json=report.json")
    for _ in range(2):  # the second time from the cache
        result = audit(project, *given)
        assert result.returncode == 0, result.stderr
        report = sn.Report.load(project / "report.json")
        assert report["balanced"]["attribute.note.gain"].value == 0
    assert "The model ignores: note (kept, as it is sensitive)" in result.stderr
    assert report.environment["tier"] == "few"


def test_shadows_are_trained_on_such_tables(project) -> None:
    result = audit(
        project,
        "--train=census:train",
        "--shadows=4",
        "--policy=lenient.toml",
        "--json=report.json",
    )
    assert result.returncode == 0, result.stderr
    report = sn.Report.load(project / "report.json")
    assert "membership.LiRA.auc" in {finding.name for finding in report["bare"].findings}


def test_results_of_a_pipeline_are_kept(project) -> None:
    for _ in range(2):
        result = audit(project, "--cache=kept", "--shadows=0", "--policy=lenient.toml")
        assert result.returncode == 0, result.stderr
        kept = set((project / "kept").iterdir())
    assert audit(project, "--cache=kept", "--shadows=0", "--policy=lenient.toml").returncode == 0
    assert set((project / "kept").iterdir()) == kept


def test_harden_refuses_a_pipeline_that_only_a_pickle_holds_with_what_works(project) -> None:
    result = shieldnet(project, "harden", "census:pipeline", "--classes=2", "--output=hardened")
    assert result.returncode == 2
    assert "A hardened folder holds no pickle: Pipeline is scikit-learn's" in result.stderr
    words = result.stderr.replace("\n", " ")
    assert "ship its code, shield.toml and the report" in words
    assert "audit and harden the .onnx file itself" in words
    assert not (project / "hardened").exists()


@pytest.mark.parametrize(
    ("extra", "given", "words"),
    [
        ((), {"model": "census:unfitted"}, "got LogisticRegression, which is not fitted"),
        (("--weights=w.pt",), {}, "is not a torch module and contains its weights: omit --weights"),
        (("--label=salary",), {}, "has no column salary. It has: age, education, sex, note, inc"),
        ((), {"members": "narrow.csv"}, "The members lack columns that the model needs: education"),
        (("--sensitive=job",), {}, "There is no column job"),
        (("--group=job",), {}, "has no column job"),
        (("--outputs=logits",), {}, "Pass --outputs probabilities"),
    ],
)
def test_what_does_not_fit_exits_with_2(project, extra, given, words) -> None:
    result = audit(project, *extra, **given)
    assert result.returncode == 2
    assert words in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


def test_finetune_refuses_what_gradients_do_not_train(project) -> None:
    result = shieldnet(
        project, "finetune", "census:pipeline", "--data=members.csv", "-o=private", "--label=income"
    )
    assert result.returncode == 2
    assert "by gradients, which Pipeline does not have" in result.stderr.replace("\n", " ")
