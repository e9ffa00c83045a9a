"""What is written is read, whatever a model ties, keeps or is made of."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_model
from shell import shieldnet
from torch import nn

from shieldnet.core.errors import DataError
from shieldnet.files.sources import load_model
from shieldnet.files.weights import load_weights, read_weights, write_weights


class Tied(nn.Module):
    """A language model's shape: the head is the embedding; a scale of no axis; a turned buffer."""

    def __init__(self, dtype: torch.dtype = torch.float32, *, is_tied: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4, dtype=dtype)
        self.head = nn.Linear(4, 9, bias=False, dtype=dtype)
        if is_tied:
            self.head.weight = self.words.weight
        self.scale = nn.Parameter(torch.randn((), dtype=dtype))
        self.register_buffer("turned", torch.randn(3, 5, dtype=dtype).T)
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("empty", torch.empty(0, 2, dtype=dtype))
        self.register_buffer("unsaved", torch.ones(2), persistent=False)


def same(left: nn.Module, right: nn.Module) -> bool:
    states = left.state_dict(), right.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(tensor, states[1][name]) for name, tensor in states[0].items()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_is_written_is_read(tmp_path, dtype) -> None:
    model, other = Tied(dtype), Tied(dtype)
    write_weights(model, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors", "tied")
    assert same(model, other)
    assert other.head.weight is other.words.weight


def test_names_that_the_file_left_out_because_they_are_tied_are_no_loss(tmp_path) -> None:
    model, other = Tied(), Tied()
    model.turned = model.turned.contiguous()
    save_model(model, str(tmp_path / "w.safetensors"))
    assert len(read_weights(tmp_path / "w.safetensors")) == len(model.state_dict()) - 1
    load_weights(other, tmp_path / "w.safetensors", "tied")
    assert same(model, other)


def test_weights_that_differ_where_the_model_ties_them_are_refused(tmp_path) -> None:
    write_weights(Tied(is_tied=False), tmp_path / "w.safetensors")
    with pytest.raises(DataError, match="different weights for words.weight and head.weight"):
        load_weights(Tied(), tmp_path / "w.safetensors", "tied")


def test_nothing_of_a_model_is_changed_by_weights_that_do_not_fit(tmp_path) -> None:
    model = Tied()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save({"scale": torch.tensor(3.0)}, tmp_path / "w.pt")
    with pytest.raises(DataError, match="it lacks turned, flags, empty and 2 more"):
        load_weights(model, tmp_path / "w.pt", "tied")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_finetune_writes_the_audit_reads_for_tied_weights_too(tmp_path, monkeypatch) -> None:
    (tmp_path / "users_tied.py").write_text(
        "from torch import nn\n"
        "class Tied(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first, self.last = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)\n"
        "        self.last.weight = self.first.weight\n"
        "    def forward(self, x):\n        return self.last(self.first(x).relu())\n"
    )
    np.savez(
        tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(30, 6)), y=np.arange(30) % 6
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    done = shieldnet(
        tmp_path, "finetune", "users_tied:Tied", "--data=d.npz", "-o", "out", "--epochs=1"
    )
    assert done.returncode == 0, done.stderr
    model = load_model("users_tied:Tied", "out/model.safetensors")
    assert model.last.weight is model.first.weight
    sys.modules.pop("users_tied", None)


def test_a_state_that_is_more_than_tensors_is_refused_when_it_is_written(tmp_path) -> None:
    class Keeps(nn.Linear):
        def get_extra_state(self):
            return {"seen": 3}

    with pytest.raises(DataError, match="has a dict as _extra_state"):
        write_weights(Keeps(2, 2), tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()
