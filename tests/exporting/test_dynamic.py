"""Texts of any length: axes beside the batch that a graph takes in any size."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.core.errors import ConfigError

AXES = {"input_ids": {1: "length"}, "attention_mask": {1: "length"}}


class Reader(nn.Module):
    """A small text model with attention."""

    def __init__(self, per_token: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.last = nn.Embedding(50, 8), nn.Linear(8, 5)
        self.per_token = per_token

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        words = self.words(input_ids).unsqueeze(1)  # one head
        mask = attention_mask[:, None, None, :].bool()
        read = nn.functional.scaled_dot_product_attention(words, words, words, attn_mask=mask)
        scores = self.last(read.squeeze(1))
        if self.per_token:
            return {"logits": scores}
        kept = attention_mask.unsqueeze(-1)
        return {"logits": (scores * kept).sum(1) / kept.sum(1)}


def texts(rows: int, length: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(rows + length)
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[0, length // 2 :] = 0
    return {
        "input_ids": torch.randint(0, 50, (rows, length), generator=draw),
        "attention_mask": mask,
    }


@pytest.mark.parametrize("per_token", [False, True])
def test_a_graph_takes_texts_of_any_length(per_token, tmp_path) -> None:
    axis = -1 if per_token else None
    shield = sn.Shield(Reader(per_token).eval(), sn.Confidence(4), axis=axis)
    for ending in (".pt2", ".onnx"):
        written = sn.export(shield, texts(4, 7), tmp_path / f"model{ending}", dynamic=AXES)
    assert written.sizes == (("batch", "length"), ("batch", "length"))
    assert "fixed" not in repr(written)
    program = torch.export.load(tmp_path / "model.pt2").module()
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert session.get_inputs()[0].shape == ["batch", "length"]
    for rows, length in ((2, 9), (1, 2), (5, 40)):
        asked = texts(rows, length)
        wanted = shield(**asked)["logits"]
        assert torch.equal(program(**asked)["logits"], wanted)
        arrays = {name: value.numpy() for name, value in asked.items()}
        assert np.allclose(session.run(["logits"], arrays)[0], wanted.numpy(), atol=1e-6)


def test_without_it_other_lengths_are_fixed_and_told(tmp_path) -> None:
    shield = sn.Shield(Reader().eval(), sn.Confidence(4))
    written = sn.export(shield, texts(4, 7), tmp_path / "model.pt2")
    assert written.sizes == (("batch", 7), ("batch", 7))
    assert "input_ids (batch, 7)" in repr(written)
    assert "Sizes in numbers are fixed: pad inputs to them." in repr(written)


@pytest.mark.parametrize(
    ("dynamic", "words"),
    [
        ({"ids": {1: "length"}}, "axis 1 of ids. The inputs are input_ids, attention_mask"),
        ({"input_ids": {0: "length"}}, "the batch left out, got axis 0"),
        ({"input_ids": {2: "length"}}, "got axis 2 of input_ids"),
        ({"input_ids": {1: "batch"}}, "a name such as 'length'"),
        ({"input_ids": {1: 7}}, "a name such as 'length'"),
    ],
)
def test_axes_that_an_example_does_not_have_are_refused(dynamic, words, tmp_path) -> None:
    shield = sn.Shield(Reader().eval(), sn.Confidence(4))
    with pytest.raises(ConfigError, match=words):
        sn.export(shield, texts(4, 7), tmp_path / "model.pt2", dynamic=dynamic)


def test_noise_that_grows_with_a_text_is_refused(tmp_path) -> None:
    shield = sn.Shield(Reader(per_token=True).eval(), sn.RandomizedResponse(3.0), axis=-1)
    with pytest.raises(ConfigError, match="noise of a fixed size"):
        sn.export(shield, texts(4, 7), tmp_path / "model.pt2", dynamic=AXES)
    pooled = sn.Shield(Reader().eval(), sn.RandomizedResponse(3.0))
    written = sn.export(pooled, texts(4, 7), tmp_path / "model.onnx", dynamic=AXES)
    assert written.sizes[-1] == ("batch", 1)


def test_a_size_that_the_model_fixes_is_named(tmp_path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.read(x)[0].mean(1))

    x = torch.randn(6, 5, 4)
    shield = sn.harden(Recurrent().eval())
    sn.export(shield, x, tmp_path / "fixed.pt2")
    with pytest.raises(sn.errors.ConfigError, match=r"fixes a size .*\(length\).*pad inputs"):
        sn.export(shield, x, tmp_path / "any.pt2", dynamic={"x": {1: "length"}})
