"""An .npz of a model's named inputs and labels, from the shell."""

from pathlib import Path

import numpy as np
import pytest
from shell import shieldnet

MODULE = """
import numpy, torch

class Reader(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = torch.nn.Embedding(12, 8), torch.nn.Linear(8 + 2, 2)

    def forward(self, input_ids, attention_mask, table):
        assert table.dtype == torch.float32
        kept = attention_mask.unsqueeze(-1).float()
        return self.head(torch.cat([(self.words(input_ids) * kept).sum(1), table], 1))

class Texts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = torch.nn.Embedding(12, 8), torch.nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        kept = attention_mask.unsqueeze(-1).float()
        return self.head((self.words(input_ids) * kept).sum(1))

def model():
    torch.manual_seed(0)
    return Reader()

def texts():
    torch.manual_seed(0)
    return Texts()

def nonmembers():
    with numpy.load("nonmembers.npz") as arrays:
        return dict(arrays)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    (folder / "reading.py").write_text(MODULE)
    draw = np.random.default_rng(0)
    for name in ("members", "nonmembers", "auxiliary"):
        arrays = {
            "input_ids": draw.integers(1, 12, (80, 6)),
            "attention_mask": draw.random((80, 6)) < 0.7,
            "table": draw.normal(size=(80, 2)),
            "labels": draw.integers(0, 2, 80),
        }
        np.savez(folder / f"{name}.npz", **arrays)
        del arrays["table"]
        np.savez(folder / f"texts_{name}.npz", **arrays)
        arrays["diagnosis"] = arrays.pop("labels")
        np.savez(folder / f"other_{name}.npz", **arrays)
    np.savez(folder / "unnamed.npz", np.ones((5, 3)), np.ones(5))
    return folder


SETS = tuple(f"--{name}={name}.npz" for name in ("members", "nonmembers", "auxiliary"))


def test_an_audit_reads_a_models_inputs_by_their_names(folder) -> None:
    given = ("--tier=quick", "--shadows=0", "-o", "report.json")
    found = shieldnet(folder, "audit", "reading:model", *SETS, *given)
    assert found.returncode == 0, found.stderr
    kept = (folder / "report.json").read_text()
    assert "inversion.column.attention_mask" in kept
    sets = (SETS[0], "--nonmembers=reading:nonmembers", SETS[2])
    again = shieldnet(folder, "audit", "reading:model", *sets, *given)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("prefix", "label"), [("texts_", ()), ("other_", ("--label", "diagnosis"))]
)
def test_a_model_of_named_arrays_is_trained_divided_and_audited(folder, prefix, label) -> None:
    trained = shieldnet(
        folder,
        *("finetune", "reading:texts", "--data", f"{prefix}members.npz", "-o", f"{prefix}new"),
        *("--epochs=2", "--validation", f"{prefix}nonmembers.npz", *label),
    )
    assert trained.returncode == 0, trained.stderr
    parts = f"{prefix}parts"
    divided = shieldnet(folder, "split", f"{prefix}auxiliary.npz", "-o", parts, *label)
    assert divided.returncode == 0, divided.stderr
    found = shieldnet(
        folder,
        *("audit", "reading:texts", "--weights", f"{prefix}new/model.safetensors"),
        *("--members", f"{parts}/members.npz", "--nonmembers", f"{parts}/nonmembers.npz"),
        *("--tier=quick", "--shadows=0", *label),
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("members", "extra", "words"),
    [
        ("unnamed.npz", (), "Expected arrays x and y in unnamed.npz, or the model's inputs by "),
        ("unnamed.npz", (), "got: arr_0, arr_1."),
        ("members.npz", ("--label=age",), "has no array age for --label. It has: attention_mask, "),
        ("members.npz", ("--group=sex",), "has no array sex for --group. It has: attention_mask, "),
        ("texts_members.npz", (), "with the same inputs, got"),
    ],
)
def test_arrays_that_are_no_inputs_are_listed(folder, members, extra, words) -> None:
    sets = (f"--members={members}", *SETS[1:])
    found = shieldnet(folder, "audit", "reading:model", *sets, *extra)
    assert found.returncode == 2
    assert words in " ".join(found.stderr.split())
