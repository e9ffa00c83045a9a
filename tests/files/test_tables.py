import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shieldnet.files.sizes as limits
from shieldnet.core.errors import DataError
from shieldnet.files.tables import divided, read_table


def write(path, columns: dict):
    table = pa.table(columns)
    if path.suffix == ".csv":
        import pyarrow.csv as pc

        pc.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


@pytest.fixture(params=[".csv", ".parquet"])
def path(request, tmp_path):
    return tmp_path / f"data{request.param}"


def test_numbers_truths_and_words_come_back_in_the_files_order(path) -> None:
    columns = {
        "b": [1, 2, 3],
        "a": [0.5, -1.0, 2.0],
        "c": [True, False, True],
        "w": ["x", "y", "x"],
    }
    found = read_table(write(path, columns), "members")
    assert list(found) == list(columns)
    for name, values in columns.items():
        assert found[name].tolist() == values


def test_a_label_has_one_of_three_names_or_the_given_one(path) -> None:
    table = read_table(write(path, {"a": [1.0, 2.0], "target": [0, 1]}), "members")
    inputs, labels, columns, groups = divided(table, None, (), path)
    assert inputs.dtype == np.float32
    assert (inputs.tolist(), labels.tolist(), columns, groups) == ([[1], [2]], [0, 1], ("a",), {})
    assert divided(table, "a", (), path)[2] == ("target",)
    both = read_table(write(path, {"y": [1, 2], "target": [0, 1]}), "members")
    with pytest.raises(DataError, match="has the columns y and target: name one with --label"):
        divided(both, None, (), path)
    assert divided(both, "y", (), path)[2] == ("target",)


@pytest.mark.parametrize(
    ("columns", "label", "groups", "words"),
    [
        ({"a": [1, 2]}, "y", (), "has no column y. It has: a"),
        ({"a": [1, 2]}, None, ("sex",), "has no column sex. It has: a"),
        ({"a": [1, 2], "job": ["x", "y"]}, None, (), "got words in: job. Encode them as numbers"),
        ({"y": [1, 2]}, None, (), "has no column of inputs"),
    ],
)
def test_columns_that_do_not_fit_are_named(path, columns, label, groups, words) -> None:
    table = read_table(write(path, columns), "members")
    with pytest.raises(DataError, match=words):
        divided(table, label, groups, path)


def test_missing_values_are_refused_by_their_column(path) -> None:
    with pytest.raises(DataError, match="has 1 missing value in a .first: row"):
        read_table(write(path, {"a": [1, None], "b": [1, 2]}), "members")


def test_other_kinds_are_refused_by_their_column(tmp_path) -> None:
    path = write(tmp_path / "a.parquet", {"when": pa.array([0], pa.timestamp("s"))})
    with pytest.raises(DataError, match="Expected numbers or words in the column when"):
        read_table(path, "members")
    path = write(tmp_path / "b.parquet", {"many": [[1, 2]]})
    with pytest.raises(DataError, match="Expected numbers or words in the column many"):
        read_table(path, "members")


def test_two_columns_of_one_name_are_refused(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="two columns with one name"):
        read_table(tmp_path / "a.csv", "members")


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1\n", b"PAR1", b"\xff\xfe\x00", b"a\n" + b"\x00" * 9]
)
def test_what_is_no_table_is_refused(path, content) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a readable|Expected numbers|missing values"):
        divided(read_table(path, "members"), None, (), path)


def test_a_table_larger_than_memory_allows_is_refused_before_it_is_read(path, monkeypatch) -> None:
    write(path, {"a": np.zeros(10_000)})
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 3_000)
    with pytest.raises(DataError, match="bytes, above the limit of 3000"):
        read_table(path, "members")


def test_quoted_names_do_not_tell_how_a_table_is_divided(tmp_path) -> None:
    path = tmp_path / "members.csv"
    path.write_text('"size; in cm, of all",b\n1,2\n')
    assert list(read_table(path, "members")) == ["size; in cm, of all", "b"]
    path.write_text('"two\nlines";"a,b,c"\n1;2\n')
    assert list(read_table(path, "members")) == ["two\nlines", "a,b,c"]
