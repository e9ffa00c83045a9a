"""Public rows come in every form that a model reads, and what is none is refused by name."""

import numpy as np
import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.core.errors import ConfigError, DataError

PUBLIC = np.random.default_rng(0).normal(size=(150, 4))
LINE = nn.Linear(4, 1)


def line(rows: np.ndarray) -> np.ndarray:
    assert isinstance(rows, np.ndarray)
    return rows @ LINE.weight.detach().numpy().T.astype(float)


def harden(model, rows, kind: str = "values") -> sn.Shield:
    return sn.harden(model, "open", outputs=kind, calibrate=rows)


def test_a_function_of_arrays_takes_arrays_and_tensors_alike() -> None:
    found = harden(line, PUBLIC)
    assert found.defenses == harden(line, torch.from_numpy(PUBLIC)).defenses
    assert isinstance(found(PUBLIC), np.ndarray)
    fields = sn.harden(
        lambda rows: {"values": line(rows), "rows": rows},
        "open",
        outputs="values",
        drop=("rows",),
        calibrate={"rows": PUBLIC},
    )
    assert fields.defenses == found.defenses


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_module_takes_arrays_in_its_own_float_type(dtype) -> None:
    model = nn.Linear(4, 3).to(dtype)
    rows = PUBLIC[::-1]
    wanted = harden(model, torch.from_numpy(rows.copy()).to(dtype), "embeddings")
    assert harden(model, rows, "embeddings").defenses == wanted.defenses
    assert harden(model, {"input": rows}, "embeddings").defenses == wanted.defenses
    assert harden(model, (rows,), "embeddings").defenses == wanted.defenses


@pytest.mark.parametrize("rows", [0, 1, 99])
def test_too_few_rows_are_counted(rows) -> None:
    for model in (line, LINE):
        with pytest.raises(DataError, match=f"at least 100 public rows.*got {rows}"):
            harden(model, PUBLIC[:rows])


def test_whole_numbers_stay_whole() -> None:
    model = nn.Sequential(nn.EmbeddingBag(9, 5), nn.Linear(5, 3))
    assert harden(model, np.arange(600).reshape(150, 4) % 9, "embeddings").defenses


@pytest.mark.parametrize("model", [line, LINE], ids=["function", "module"])
@pytest.mark.parametrize(
    "given", [PUBLIC.tolist(), "public.npy", 5, np.float64(3), torch.tensor(1.0), (), {}], ids=type
)
def test_what_has_no_rows_is_refused_by_name(model, given) -> None:
    with pytest.raises(ConfigError, match="Expected calibrate= to be public rows.*got ") as refused:
        harden(model, given)
    assert type(given).__name__ in str(refused.value)
    assert "micro_batch" not in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        torch.from_numpy(PUBLIC),
        torch.zeros(150, 7),
        {"rows": torch.zeros(150, 4)},
        (torch.zeros(150, 4), torch.zeros(150, 4)),
        np.full((150, 4), "word"),
        np.ones((150, 4), int),
    ],
    ids=["float64", "shape", "key", "two", "words", "integers"],
)
def test_rows_that_the_model_does_not_take_are_refused_with_what_it_said(given) -> None:
    with pytest.raises(DataError, match="Expected public rows that the model answers, got ") as no:
        harden(LINE, given)
    assert "Pass calibrate= what the model takes" in str(no.value)
    assert no.value.__cause__ is not None


def test_tables_go_to_functions_as_they_are() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(PUBLIC, columns=list("abcd"))
    assert harden(lambda rows: line(rows[list("abcd")].to_numpy()), table).defenses
