"""ONNX models: names that say what is what, and numbers with all their digits."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn

ROWS = torch.randn(20_000, 6, generator=torch.Generator().manual_seed(1))


class Scores(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows * 1.0


class Heads(nn.Module):
    def forward(self, rows: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"intent": rows[:, :3] * mask[:, :3], "topic": rows[:, 3:] * 2, "mask": rows * 1.0}


class Twice(nn.Module):
    """Gives one value in two fields."""

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        logits = rows * 1.0
        return {"a": logits, "b": logits}


def session_of(shield: sn.Shield, example, folder) -> onnxruntime.InferenceSession:
    sn.export(shield, example, folder / "model.onnx", force=True)
    return onnxruntime.InferenceSession(str(folder / "model.onnx"))


@pytest.mark.parametrize("step", [0.1, 0.3, 1e-3])
def test_multiples_of_a_step_are_the_same_bits(step, tmp_path) -> None:
    shield = sn.Shield(Scores().eval(), sn.RoundTo(step), outputs="values")
    session = session_of(shield, ROWS[:8], tmp_path)
    asked = torch.cat([ROWS, ROWS.mul(10).round().div(10) + step / 2])  # halves, too
    (answer,) = session.run(None, {"rows": asked.numpy()})
    assert np.array_equal(answer, shield(asked).numpy())


def test_answers_are_named_by_their_fields_and_the_batch_is_called_so(tmp_path) -> None:
    session = session_of(sn.harden(Scores().eval(), "open"), ROWS[:8], tmp_path)
    assert [(one.name, one.shape) for one in session.get_outputs()] == [("answer", ["batch", 6])]
    assert session.get_inputs()[0].shape == ["batch", 6]
    kinds = {"intent": "logits", "topic": "logits", "mask": "logits"}
    shield = sn.harden(Heads().eval(), "open", outputs=kinds)
    example = {"rows": ROWS[:8], "mask": torch.ones(8, 6)}
    session = session_of(shield, example, tmp_path)
    names = [one.name for one in session.get_outputs()]
    assert names == ["intent", "topic", "released_mask"]  # mask is the name of an input
    answers = session.run(names, {name: value.numpy() for name, value in example.items()})
    assert all(map(np.array_equal, answers, shield(**example).values()))


def test_one_value_in_two_fields_has_both_names(tmp_path) -> None:
    shield = sn.harden(Twice().eval(), "open", outputs={"a": "logits", "b": "logits"})
    session = session_of(shield, ROWS[:8], tmp_path)
    assert [one.name for one in session.get_outputs()] == ["a", "b"]
    first, second = session.run(None, {"rows": ROWS[:9].numpy()})
    assert np.array_equal(first, second)


def test_what_was_written_is_told_with_its_sizes(tmp_path) -> None:
    shield = sn.Shield(Scores().eval(), sn.ClipNorm(5.0), sn.GaussianNoise(2.0))
    written = sn.export(shield, ROWS[:8], tmp_path / "model.pt2")
    assert written.outputs == ("answer",)
    assert written.sizes == (("batch", 6), ("batch", 6))
    shown = repr(written)
    assert "rows (batch, 6), noise (batch, 6)" in shown
    assert "Sizes in numbers are fixed: pad inputs to them." in shown
