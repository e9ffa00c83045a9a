"""A checkpoint goes on where what the training uses is the same, and names what is not."""

import importlib
import re
import sys

import pytest
import torch
from safetensors.torch import save_file

import shieldnet as sn

MINE = """
import torch
from torch import nn

SCALE = 1.0

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, 3)

    def forward(self, x):
        return self.layer(x) * SCALE
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Writes the user's module and imports it anew, as another start of the program does."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def written(text: str):
        (tmp_path / "identity_mine.py").write_text(text)
        sys.modules.pop("identity_mine", None)
        importlib.invalidate_caches()
        return importlib.import_module("identity_mine").Net()

    yield written
    sys.modules.pop("identity_mine", None)


def begin(model, table, folder, *more, data=None, **changes):
    settings = {"epochs": 3, "checkpoint": folder, "progress": False, **changes}
    private = settings.pop("private", sn.DPSGD(8.0, 1e-3))
    return sn.finetune(model, data or table, private, *more, **settings)


def test_a_function_that_the_training_does_not_use_may_change(load, table, tmp_path) -> None:
    folder = tmp_path / "kept"
    begin(load(MINE), table, folder)
    again = begin(load(MINE + "\ndef plot():\n    return 3\n"), table, folder)
    assert again.taken == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [("* SCALE", "* SCALE + 0"), ("SCALE = 1.0", "SCALE = 2.0")],
    ids=["the forward pass", "a constant that it reads"],
)
def test_code_that_the_training_uses_is_named(old, new, load, table, tmp_path) -> None:
    folder = tmp_path / "kept"
    begin(load(MINE), table, folder)
    with pytest.raises(
        sn.errors.TrainingFailed,
        match=r"What differs: the code of Net in identity_mine.py was edited\.",
    ):
        begin(load(MINE.replace(old, new)), table, folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 0.4}, "learning_rate: 0.1 then, 0.4 now"),
        ({"epochs": 4}, "epochs: 3 then, 4 now"),
        ({"optimizer": "adam"}, "optimizer: 'sgd' then, 'adam' now"),
        ({"start": "public"}, "start: None then, 'public' now"),
        ({"train": sn.trainable.Biases()}, "train: Full\\(\\) then, Biases\\(\\) now"),
        ({"private": sn.DPSGD(4.0, 1e-3)}, "DPSGD epsilon: 8.0 then, 4.0 now"),
        (
            {"private": sn.DPSGD(8.0, 1e-3, max_grad_norm=sn.AdaptiveClip())},
            "DPSGD max_grad_norm: 1.0 then, AdaptiveClip",
        ),
        ({"loss": torch.nn.CrossEntropyLoss(reduction="none")}, "the loss"),
        ({"seed": 3}, "seed: None then, 3 now"),
    ],
)
def test_every_setting_that_differs_is_named(changes, words, table, mlp, tmp_path) -> None:
    begin(mlp, table, tmp_path)
    with pytest.raises(sn.errors.TrainingFailed, match=rf"What differs: {words}"):
        begin(mlp, table, tmp_path, **changes)


def test_other_data_weights_and_countermeasures_are_named(table, mlp, tmp_path, make_model) -> None:
    begin(mlp, table, tmp_path)
    with pytest.raises(sn.errors.TrainingFailed, match="What differs: the data. Undo"):
        begin(mlp, table, tmp_path, data=(table[0] + 1, table[1]))
    with torch.no_grad():
        kept = mlp[0].weight.clone()
        mlp[0].weight += 1
    with pytest.raises(sn.errors.TrainingFailed, match="What differs: the starting weights .a fac"):
        begin(mlp, table, tmp_path)
    with torch.no_grad():
        mlp[0].weight.copy_(kept)
    mlp[1].note = "another"
    with pytest.raises(sn.errors.TrainingFailed, match="holds something else than it did"):
        begin(mlp, table, tmp_path)


def test_another_version_is_named_alone(table, mlp, tmp_path, monkeypatch) -> None:
    begin(mlp, table, tmp_path)
    monkeypatch.setattr(torch, "__version__", "99.0")
    with pytest.raises(sn.errors.TrainingFailed, match="version of torch: .* then, 99.0 now. U"):
        begin(mlp, table, tmp_path)


class Kept(torch.nn.Module):
    """Takes one input, or two, past a layer that ``fix=True`` replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = torch.nn.BatchNorm1d(12), torch.nn.Linear(12, 3)

    def forward(self, x, y=0):
        return self.head(self.norm(x) + y)


@pytest.mark.parametrize("form", ["one input", "two inputs"])
@pytest.mark.parametrize("measures", [(), (sn.DPSGD(8.0, 1e-3),)], ids=["plain", "private"])
def test_a_random_start_is_kept_and_resumes_the_training(measures, form, table, tmp_path) -> None:
    inputs, labels = table
    data = (inputs if form == "one input" else {"x": inputs, "y": inputs}), labels
    settings = {"epochs": 3, "fix": True, "checkpoint": tmp_path / "ck_my", "batch_size": 60}
    first = sn.finetune(Kept(), data, *measures, **settings)
    before = (tmp_path / "ck_my" / "start.safetensors").read_bytes()
    model = Kept()
    with pytest.raises(sn.errors.TrainingFailed) as refused:
        sn.finetune(model, data, *measures, **settings)
    told = str(refused.value)
    assert "What differs: the starting weights (a factory gives" in told
    line = re.search(r"Undo it \((sn\.load_weights\(.*\))\) to go on", told)
    eval(line[1], {"sn": sn, "model": model})  # noqa: S307 - our own message
    again = sn.finetune(model, data, *measures, **settings)
    assert again.taken == 0
    for name, weight in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name
    assert (tmp_path / "ck_my" / "start.safetensors").read_bytes() == before


def test_other_starting_weights_than_those_of_a_checkpoint_are_refused_from_its_file_too(
    table, mlp, tmp_path
) -> None:
    begin(mlp, table, tmp_path)
    with torch.no_grad():
        mlp[0].weight += 1
    save_file(mlp.state_dict(), tmp_path / "start.safetensors")
    sn.load_weights(mlp, tmp_path / "start.safetensors")
    with pytest.raises(sn.errors.TrainingFailed, match="What differs: the starting weights"):
        begin(mlp, table, tmp_path)


def test_a_start_that_no_file_holds_is_not_named(table, tmp_path) -> None:
    class Noted(torch.nn.Linear):
        def get_extra_state(self):
            return "a word"

        def set_extra_state(self, state):
            pass

    settings = {"epochs": 1, "checkpoint": tmp_path}
    assert sn.finetune(Noted(12, 3), table, **settings).steps
    assert not (tmp_path / "start.safetensors").exists()
    with pytest.raises(sn.errors.TrainingFailed, match="What differs: .* Undo it to go on"):
        sn.finetune(Noted(12, 3), table, **settings)
