"""Rows that a shield refuses: every field of them is marked, and the rows beside are as always."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.core.errors import AnswerError

ENDINGS = (".pt2", ".onnx")
ROWS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


class Scores(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows * 1.0


class Heads(nn.Module):
    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        return {"intent": rows[:, :3] * 1.0, "topic": rows[:, 3:] * 1.0}


class Boxes(nn.Module):
    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        ids = torch.arange(6) + 0 * rows.to(torch.int64)
        return {"logits": rows[:, :3] * 1.0, "boxes": rows[:, 3:] * 1.0, "ids": ids}


def ask(path: Path, inputs: Tensor) -> list[Any]:
    if path.suffix == ".pt2":
        answer = torch.export.load(path).module()(inputs)
        parts = answer.values() if isinstance(answer, dict) else [answer]
        return [part.numpy() for part in parts]
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), settings).run(None, {"rows": inputs.numpy()})


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_row_that_is_refused_in_one_field_is_marked_in_all_of_them(ending, tmp_path) -> None:
    kinds = {"intent": "logits", "topic": "logits"}
    shield = sn.harden(Heads().eval(), "open", outputs=kinds)
    sn.export(shield, ROWS, tmp_path / f"model{ending}")
    asked = ROWS.clone()
    asked[2, 0] = torch.nan  # of the intent alone
    for answer in ask(tmp_path / f"model{ending}", asked):
        assert np.isnan(answer).any(1).tolist() == [row == 2 for row in range(8)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_fields_that_are_released_as_they_are_get_the_mark_too(ending, tmp_path) -> None:
    shield = sn.Shield(
        Boxes().eval(),
        sn.Confidence(4),
        outputs={"logits": "logits"},
        also={"boxes": (), "ids": ()},
    )
    sn.export(shield, ROWS, tmp_path / f"model{ending}")
    asked = ROWS.clone()
    asked[2, 0] = torch.nan
    logits, boxes, ids = ask(tmp_path / f"model{ending}", asked)
    assert np.isnan(logits).all(1).tolist() == [row == 2 for row in range(8)]
    assert np.isnan(boxes).all(1).tolist() == [row == 2 for row in range(8)]
    assert (ids == -1).all(1).tolist() == [row == 2 for row in range(8)]
    assert np.array_equal(boxes[3:], asked[3:, 3:].numpy())


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("chain", "release"),
    [((sn.TopK(2), sn.Round(2)), None), ((sn.Round(1),), "logits"), ((sn.Round(2),), None)],
    ids=str,
)
def test_no_refused_row_stops_its_batch(chain, release, ending, tmp_path) -> None:
    shield = sn.Shield(Scores().eval(), *chain, outputs="probabilities", release=release)
    example = ROWS.softmax(-1)
    sn.export(shield, example, tmp_path / f"model{ending}")
    for bad in (torch.nan, torch.inf, 2.0, 1e9, 3e38, -5.0, -3e38, 0.0):
        asked = example.clone()
        asked[5] = bad
        (answer,) = ask(tmp_path / f"model{ending}", asked)
        others = torch.arange(8) != 5
        with pytest.raises(AnswerError):
            shield(asked)
        assert np.isnan(answer[5]).all()
        assert np.allclose(answer[others], shield(asked[others]).numpy(), rtol=1e-6)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_negative_zero_stays_one(ending, tmp_path) -> None:
    shield = sn.Shield(Scores().eval())
    asked = ROWS.clone()
    asked[3, 2] = -0.0
    sn.export(shield, ROWS, tmp_path / f"model{ending}")
    (answer,) = ask(tmp_path / f"model{ending}", asked)
    wanted = shield(asked).numpy()
    assert np.array_equal(answer.view(np.int32), wanted.view(np.int32))


@pytest.mark.parametrize("ending", ENDINGS)
def test_one_value_a_row_without_an_axis_of_its_own_is_exported(ending, tmp_path) -> None:
    shield = sn.Shield(
        nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)).eval(),
        sn.ClipRange(-1.0, 1.0),
        sn.RoundTo(0.25),
        outputs="values",
    )
    name = {".pt2": "input", ".onnx": "input"}[ending]
    sn.export(shield, {name: ROWS}, tmp_path / f"model{ending}")
    asked = ROWS[:3].clone()
    asked[1, 0] = torch.inf
    if ending == ".pt2":
        answer = torch.export.load(tmp_path / "model.pt2").module()(input=asked).detach().numpy()
    else:
        session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
        (answer,) = session.run(None, {"input": asked.numpy()})
    assert np.isnan(answer).tolist() == [False, True, False]
    assert np.array_equal(answer[[0, 2]], shield(asked[[0, 2]]).numpy())
