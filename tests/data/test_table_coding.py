"""Tables that are not tame: whatever they hold, they come back as they were."""

from decimal import Decimal

import numpy as np
import pandas
import pytest
import torch
from pandas.testing import assert_frame_equal

from shieldnet.core.errors import DataError
from shieldnet.data.table_coding import TableCoding, as_table, is_plain

Frame = pandas.DataFrame
NAN = float("nan")

TABLES = {
    "words and numbers": {"age": [1.5, 2.25, 3.0], "job": ["a", "b", "a"]},
    "unicode": {"École=1": ["ä", "中文", "", " a "], "🙂": [1, 2, 3, 4]},
    "constant": {"one": [7] * 3, "word": ["x"] * 3},
    "one row": {"age": [3], "job": ["a"]},
    "missing numbers": {"age": [1.0, NAN, 2.5], "whole": [1.0, NAN, 4.0]},
    "missing words": {"job": ["a", None, "missing"], "other": [NAN, "b", None]},
    "all missing": {"numbers": [NAN, NAN], "words": [None, None], "age": [1, 2]},
    "one and its word": {"code": pandas.Series(["1", 1, True, 1.0], dtype=object)},
    "bool": {"smokes": [True, False, True]},
    "bool with missing": {"smokes": pandas.Series([True, None, False], dtype=object)},
    "duplicates": {"job": ["a", "a"], "age": [1, 1]},
    "small numbers": {"x": np.array([0.1, 0.2, 1e-30], np.float32), "y": [1e-300, 1e300, 0.1]},
    "signed": {"x": np.array([-3, 0, 127], np.int8), "y": [-0.5, 0.0, 2**60 + 0.0]},
    "categories": {"c": pandas.Categorical(["b", None, "a"], ["b", "a", "never"], ordered=True)},
    "categories of numbers": {"c": pandas.Categorical([3, 1, 3])},
    "nullable": {
        "i": pandas.array([1, None, 3], dtype="Int64"),
        "b": pandas.array([True, None, False], dtype="boolean"),
        "f": pandas.array([0.5, None, 1.25], dtype="Float64"),
        "s": pandas.array(["a", None, "b"], dtype="string"),
    },
}


@pytest.mark.parametrize("name", TABLES)
def test_what_is_encoded_and_decoded_is_the_table(name) -> None:
    table = Frame(TABLES[name])
    coding = TableCoding.of({"members": table})
    codes = coding.encode(table)
    assert codes.dtype == torch.float64
    assert codes.shape == (len(table), len(coding.names))
    assert codes.isfinite().all()
    assert len(set(coding.names)) == len(coding.names)
    assert_frame_equal(coding.decode(codes), table, check_exact=True)
    for column in table:  # not by pandas' idea of equal, to which None is NaN
        told = zip(coding.decode(codes)[column], table[column], strict=True)
        assert all(type(after) is type(before) for after, before in told)


def test_names_are_those_of_one_hot_groups() -> None:
    table = Frame({"edu": ["PhD", "HS", None], "age": [1.0, NAN, 2.0], "n": [1, 2, 3]})
    coding = TableCoding.of({"members": table})
    assert coding.names == ("edu=HS", "edu=PhD", "edu=missing", "age", "age=missing", "n")
    assert coding.encode(table)[:, :3].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    mixed = Frame({"code": pandas.Series(["1", 1, "2", None, NAN], dtype=object)})
    names = TableCoding.of({"members": mixed}).names
    assert names[:3] == ("code=1 (int)", "code=1 (str)", "code=2")
    assert names[3:] == ("code=missing (missing, NoneType)", "code=missing (missing, float)")


def test_sets_share_one_coding_whatever_each_lacks() -> None:
    members = Frame({"job": ["a", "b"], "age": [1, 2], "gone": [NAN, NAN]})
    nonmembers = Frame({"gone": ["x", None], "age": [1.0, NAN], "job": ["c", None], "more": [0, 0]})
    with pytest.raises(DataError, match="the members and the nonmembers differ in more"):
        TableCoding.of({"members": members, "nonmembers": nonmembers})
    tables = {"members": members, "nonmembers": nonmembers}
    coding = TableCoding.of(tables, ("age", "job", "gone"))
    assert coding.names[:2] == ("age", "age=missing")
    for table in tables.values():
        again = coding.decode(coding.encode(table))
        assert list(again) == ["age", "job", "gone"]
        wanted = table[["age", "job", "gone"]]
        assert (again.isna().to_numpy() == wanted.isna().to_numpy()).all()
        assert ((again == wanted) | again.isna()).all(axis=None)


def test_codes_that_stand_for_no_table_are_read_as_the_nearest() -> None:
    table = Frame(
        {
            "job": ["a", "b", "c"],
            "zip": [10, 20, 40],
            "f": [0.5, 1.5, NAN],
            "b": [True, False, True],
        }
    )
    coding = TableCoding.of({"members": table})
    codes = coding.encode(table)[:1].repeat(4, 1)
    codes[:, :3] = torch.tensor([[0.2, 0.4, 0.3], [9, -1, 2], [-5, -4, -3], [0, 0, 0]])
    codes[:, 3] = torch.tensor([14.9, 31, -99, 1e9])
    codes[:, 4] = torch.tensor([0.75, -3, 99, 1])
    codes[:, 5] = torch.tensor([0, 0.49, 0.5, 7])
    codes[:, 6] = torch.tensor([0.4, 0.6, -2, 3])
    table = coding.decode(codes)
    assert table["job"].tolist() == ["b", "a", "c", "a"]
    assert table["zip"].tolist() == [10, 40, 10, 40]
    assert table["zip"].dtype == np.int64
    assert table["f"].fillna(-1).tolist() == [0.75, 0.5, -1, -1]
    assert table["b"].tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("tables", "wanted", "words"),
    [
        ([{"d": pandas.to_datetime(["2020-01-01"])}], None, "the column d of the set 0, got datet"),
        ([{"d": [[1, 2]]}], None, "got cells that are none"),
        ([{"d": [Decimal("1.5")]}], None, "got cells that are none"),
        ([{"d": [1 + 2j]}], None, "got complex128"),
        (
            [{"d": [1, 2]}, {"d": ["1", "b"]}],
            None,
            "numbers among the set 0 and words among the se",
        ),
        ([{"d": [1]}], ("d", "e"), "The set 0 lack columns that the model needs: e. They have: d"),
        ([{"d": [1.0, np.inf]}], None, "finite numbers in the column d, got Inf"),
        ([{"d": [2**60, 1]}], None, "d has integers above 2"),
        ([{"d": [f"name {n}" for n in range(1001)]}], None, "1001 different words, more than 1000"),
        ([{"d": ["a", "b"], "d=a": [1, 2]}], None, "would both be named d=a: rename one"),
        ([{}], None, "Expected tables with columns"),
    ],
)
def test_what_cannot_be_coded_is_refused_in_words(tables, wanted, words) -> None:
    given = {f"set {number}": Frame(table) for number, table in enumerate(tables)}
    with pytest.raises(DataError, match=words):
        TableCoding.of(given, wanted)


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="two columns named a: rename one"):
        TableCoding.of({"members": Frame([[1, 2]], columns=["a", "a"])})
    with pytest.raises(DataError, match="two columns named 1: rename one"):
        TableCoding.of({"members": Frame([[1, 2]], columns=["1", 1])})


def test_a_word_that_no_set_has_is_refused() -> None:
    coding = TableCoding.of({"members": Frame({"job": ["a"]})})
    with pytest.raises(DataError, match="The column job has the value 'b', which occurs in no set"):
        coding.encode(Frame({"job": ["b"]}))


def test_arrays_are_tables_without_names() -> None:
    table = as_table(np.array([[1, "a"], [2.5, None]], dtype=object))
    assert list(table) == ["column 0", "column 1"]
    assert table["column 0"].dtype == np.float64
    assert list(as_table(torch.ones(2, 2), ("x", "y"))) == ["x", "y"]
    with pytest.raises(DataError, match=r"a table of 1 columns, got an array of shape \(2, 2\)"):
        as_table(torch.ones(2, 2), ("x",))


def test_plain_is_what_needs_no_coding() -> None:
    assert is_plain(Frame({"a": [1, 2], "b": [0.5, 1]}))
    assert is_plain(Frame({"a": [True]}))
    for table in (
        {"a": ["x"]},
        {"a": [NAN]},
        {"a": [True], "b": [1]},
        {"a": pandas.array([1], dtype="Int64")},
    ):
        assert not is_plain(Frame(table))
