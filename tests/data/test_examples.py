import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import shieldnet as sn
from shieldnet.core.errors import DataError
from shieldnet.data.examples import Examples, as_examples, require_disjoint

X = torch.arange(12.0).reshape(4, 3)
Y = torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize(
    "given", [(X, Y), [X.numpy(), Y.numpy()], TensorDataset(X, Y), Examples("members", X, Y)]
)
def test_pairs_arrays_and_datasets_are_read_alike(given) -> None:
    found = as_examples(given, "members")
    assert torch.equal(found.inputs, X)
    assert torch.equal(found.labels, Y)


def test_inputs_alone_have_no_labels() -> None:
    assert as_examples(X, "auxiliary").labels is None
    with pytest.raises(DataError, match=r"Expected \(inputs, labels\) for the members"):
        as_examples(X, "members").require_labels(3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((X[:0], Y[:0]), "at least one row of members, got none"),
        (TensorDataset(X[:0], Y[:0]), "at least one row of members, got none"),
        ((X, Y[:3]), r"one label for each of the 4 members, got labels of shape \(3,\)"),
        ((X, Y.float()), "whole-number labels for the members, got torch.float32"),
        ((X * torch.nan, Y), "got NaN or Inf among the members"),
        (np.array(["a", "b"]), "Expected numbers for the members"),
        ({"x": X[:, :0], "labels": Y[:3]}, "one label for each of the 4 members"),
        ((X[:, 0], Y), r"of shape \(rows, ...\), got torch.float32 of shape \(4,\)"),
        ((X.to(torch.complex64), Y), "Expected real members"),
        (torch.tensor(1.0), "at least one row"),
        (7, r"Expected members as \(inputs, labels\).*got int"),
        (TensorDataset(X), r"Dataset of \(input, label\) pairs"),
    ],
)
def test_what_cannot_be_used_is_refused(given, words) -> None:
    with pytest.raises(DataError, match=words):
        as_examples(given, "members")


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(DataError, match="labels of the members from 0 to 1, got 0 to 2"):
        Examples("members", X, Y).require_labels(2)


def test_sets_of_different_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"of one shape, got \(3,\) and \(2,\)"):
        require_disjoint(Examples("members", X), Examples("nonmembers", X[:, :2]))


def test_overlapping_sets_are_refused_with_the_first_row() -> None:
    other = torch.cat([torch.full((2, 3), 50.0), X[1:3]])
    with pytest.raises(DataError, match="2 of the 4 nonmembers are also members .first: row 2"):
        require_disjoint(Examples("members", X), Examples("nonmembers", other))


def test_tables_and_series_of_pandas_are_taken_whatever_their_index() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 0.0]}, index=[7, 7, 2])
    labels = pandas.Series([0, 1, 0], index=["x", "y", "z"])
    found = as_examples((table, labels), "members")
    assert found.inputs.tolist() == [[1, 0], [2, 1], [3, 0]]
    assert found.labels.tolist() == [0, 1, 0]
    assert as_examples(table, "members").inputs.shape == (3, 2)


def test_a_split_draws_equal_records_together() -> None:
    """Two of 800 rows of a table came twice: the audit refused every random split of it."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 4, (400, 3), generator=generator).float()  # 64 records at most
    labels = torch.arange(400)
    parts = sn.split((inputs, labels), (0.5, 0.3, 0.2), seed=1)
    assert torch.cat([part[1] for part in parts]).sort().values.equal(labels)
    distinct = [{tuple(row) for row in part[0].tolist()} for part in parts]
    assert sum(map(len, distinct)) == len(set().union(*distinct)) == len(inputs.unique(dim=0))
    assert [len(one) for one in distinct] == [32, 18, 13]
    for part in parts:
        assert torch.equal(inputs[part[1]], part[0])
    again = sn.split((inputs, labels), (0.5, 0.3, 0.2), seed=1)
    assert all(torch.equal(one[1], other[1]) for one, other in zip(parts, again, strict=True))
    assert sn.split(inputs)[0][1] is None


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.6), (0.5, 0.5, 0.0), (-0.5, 1.5)])
def test_shares_that_divide_nothing_are_refused(shares) -> None:
    with pytest.raises(sn.errors.ConfigError, match="shares"):
        sn.split(X, shares)


def test_fewer_records_than_parts_are_refused() -> None:
    with pytest.raises(DataError, match="1 distinct records are too few"):
        sn.split(torch.ones(50, 3))


def test_a_fingerprint_tells_data_apart() -> None:
    one = Examples("members", X, Y)
    assert one.fingerprint() == Examples("other name", X.clone(), Y).fingerprint()
    assert one.fingerprint() != Examples("members", X + 1, Y).fingerprint()
    assert one.fingerprint() != Examples("members", X, Y + 1).fingerprint()


def test_half_precision_and_unsigned_labels_are_taken() -> None:
    found = as_examples((X.bfloat16(), Y.numpy().astype(np.uint16)), "members")
    assert len(found.fingerprint()) == 64
    assert found.require_labels(3).dtype == torch.int64


@pytest.mark.parametrize("labels", [["cat", "dog"], np.array(["cat", "dog"]), [None, 1]])
def test_words_as_labels_are_refused_as_labels(labels) -> None:
    with pytest.raises(DataError, match="whole numbers as labels of the members.*numpy.unique"):
        as_examples((torch.rand(2, 3), labels), "members")


@pytest.mark.parametrize(
    ("inputs", "labels", "words"),
    [
        (torch.eye(3).log(), None, r"in 3 of 3 rows \(first: row 0, column 1, counted from 0\)"),
        (torch.ones(3, 2).index_fill(0, torch.tensor(2), torch.inf), None, "row 2, column 0"),
        (torch.full((2, 1, 2, 2), torch.nan), None, r"row 0, place \(0, 0, 0\)"),
        (torch.ones(3, 2), torch.tensor([0, 1, torch.nan]), r"labels, .* \(first: row 2, counted"),
    ],
)
def test_what_is_not_finite_is_refused_with_its_place_and_the_way_on(inputs, labels, words) -> None:
    data = inputs if labels is None else (inputs, labels)
    with pytest.raises(sn.errors.DataError, match=words) as refused:
        as_examples(data, "members")
    assert "Drop these rows, or fill in what is missing" in str(refused.value)
