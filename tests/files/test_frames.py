import gzip
import sys

import numpy as np
import pandas
import pytest

from shieldnet.core.errors import DataError, MissingDependency
from shieldnet.files.frames import read_records
from shieldnet.files.sources import load_examples

TEXT = "age,education, job ,income\n1,HS,a,>50K\n,NA,b,<=50K\n3.5,Dr. é,,>50K\n"


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.parquet", "semicolons.csv"])
def test_a_table_is_read_as_pandas_reads_it(tmp_path, name) -> None:
    path = tmp_path / name
    plain = tmp_path / "plain.csv"
    plain.write_text(TEXT)
    wanted = pandas.read_csv(plain)
    if name.endswith(".parquet"):
        wanted.to_parquet(path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(TEXT.encode()))
    else:
        path.write_text(
            TEXT.replace(",", "\t" if "tsv" in name else ";" if "semi" in name else ",")
        )
    records, groups = read_records(path, "members", "income", ("job",))
    pandas.testing.assert_frame_equal(records.inputs, wanted.drop(columns="income"))
    assert list(records.inputs) == ["age", "education", " job "]
    assert records.labels.tolist() == [">50K", "<=50K", ">50K"]
    assert groups["job"].tolist() == ["a", "b", "missing"]


def test_labels_stay_as_they_are_and_have_their_usual_names(tmp_path) -> None:
    for name, cells, kind in (("y", "1\n2", "i"), ("Label", "True\nFalse", "b"), ("x", "1\n2", "")):
        path = tmp_path / f"{name}.csv"
        labels = cells.split("\n")
        path.write_text(
            f"a,{name}\n" + "".join(f"{row},{cell}\n" for row, cell in enumerate(labels))
        )
        loaded = load_examples(str(path), "members", as_records=True)
        told = loaded.examples.labels
        assert (told is None) if not kind else told.dtype.kind == kind
        assert loaded.columns == ()


def test_arrays_stay_as_they_are_too(tmp_path) -> None:
    labels = np.array(["b", "a", "b"])
    np.savez(tmp_path / "set.npz", x=np.array([[0.1], [0.2], [0.3]]), y=labels)
    loaded = load_examples(str(tmp_path / "set.npz"), "members", as_records=True)
    assert loaded.examples.inputs.dtype == np.float64
    assert loaded.examples.labels.tolist() == ["b", "a", "b"]


@pytest.mark.parametrize(
    ("text", "label", "groups", "words"),
    [
        ("", None, (), "is not a readable .csv table"),
        ("1,2\n3,4\n", None, (), "Expected column names in the first line"),
        ("a,a\n3,4\n", None, (), "two columns with one name: a, a"),
        ("a,a,b\n3,4,5\n", None, (), "two columns with one name"),
        (",a\n3,4\n", None, (), "pandas' name of row numbers"),
        ("a,b\n3,4\n", "c", (), "has no column c. It has: a, b"),
        ("a,b\n3,4\n", None, ("c",), "has no column c"),
        ("y,target\n3,4\n", None, (), "has the columns y and target: name one with --label"),
        ("y\n3\n", None, (), "has no column of inputs"),
        ("a,b\n1,2,3,4\n5,6\n", None, (), "rows with more cells than its first line"),
        ('a,b\n"1,2\n', None, (), "is not a readable .csv table"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text, label, groups, words) -> None:
    path = tmp_path / "set.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_records(path, "members", label, groups)


def test_without_pandas_it_says_how_to_install_it(tmp_path, monkeypatch) -> None:
    path = tmp_path / "set.csv"
    path.write_text(TEXT)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependency, match="Install it with: pip install pandas"):
        read_records(path, "members", None, ())
