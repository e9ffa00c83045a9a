import pickle
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shieldnet.errors import DataError
from shieldnet.loading import load_examples, load_model


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's folder with a module of their own."""
    (tmp_path / "users_model.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Linear(3, 2), nn.Dropout())\n"
        "def wrong():\n    return 7\n"
        "def data():\n    return torch.zeros(2, 3), torch.tensor([0, 1])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("users_model", None)


def test_a_factory_makes_the_model_in_evaluation_mode(project) -> None:
    model = load_model("users_model:make")
    assert isinstance(model, nn.Sequential)
    assert not model.training


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_are_loaded_without_unpickling(project, suffix) -> None:
    state = {"0.weight": torch.ones(2, 3), "0.bias": torch.zeros(2)}
    path = project / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    assert torch.equal(load_model("users_model:make", str(path))[0].weight, torch.ones(2, 3))


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a user's file was unpickled",))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_pickled_model_is_refused_and_never_run(project, suffix) -> None:
    path = project / f"model{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="not unpickled|no valid safetensors"):
        load_model("users_model:make", str(path))


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("users_model", None, "Expected MODEL as package.module:factory.*got 'users_model'"),
        ("users_model:nothing", None, "cannot load 'users_model:nothing'"),
        ("no_such_module:make", None, "cannot load 'no_such_module:make'"),
        ("users_model:wrong", None, "returned int"),
        ("users_model:make", "nowhere.pt", "Cannot read nowhere.pt: there is no such file"),
    ],
)
def test_what_is_no_model_is_refused(project, name, weights, words) -> None:
    with pytest.raises(DataError, match=words):
        load_model(name, weights)


def test_weights_of_another_model_are_refused(project) -> None:
    save_file({"other": torch.ones(2)}, project / "weights.safetensors")
    with pytest.raises(DataError, match="does not fit the model of users_model:make"):
        load_model("users_model:make", str(project / "weights.safetensors"))


def test_examples_come_from_npz_and_from_factories(project) -> None:
    np.savez("data.npz", x=np.ones((4, 3), np.float32), y=np.arange(4))
    assert len(load_examples("data.npz", "members")) == 4
    np.savez("inputs.npz", x=np.ones((4, 3), np.float32))
    assert load_examples("inputs.npz", "auxiliary").labels is None
    assert len(load_examples("users_model:data", "members")) == 2


def test_pickled_arrays_are_refused(project) -> None:
    np.savez("data.npz", x=np.array([Bomb()], dtype=object))
    with pytest.raises(DataError, match="no plain .npz file"):
        load_examples("data.npz", "members")
    np.save(project / "lone", np.ones(3))
    (project / "lone.npy").rename(project / "lone.npz")
    with pytest.raises(DataError, match="no plain .npz file"):
        load_examples("lone.npz", "members")
    (project / "pickle.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="no plain .npz file"):
        load_examples("pickle.npz", "members")


def test_truncated_and_missing_files_are_refused(project) -> None:
    np.savez("data.npz", x=np.ones((400, 3)))
    whole = (project / "data.npz").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 5):
        (project / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(DataError, match="no plain .npz file"):
            load_examples("cut.npz", "members")
    with pytest.raises(DataError, match="Cannot read the members from nowhere.npz"):
        load_examples("nowhere.npz", "members")


def test_files_without_inputs_and_other_names_are_refused(project) -> None:
    np.savez("data.npz", z=np.ones(3))
    with pytest.raises(DataError, match="Expected arrays x and y in data.npz"):
        load_examples("data.npz", "members")
    with pytest.raises(DataError, match="as an .npz file with arrays x and y.*got 'data.xls'"):
        load_examples("data.xls", "members")


def test_the_working_folder_comes_before_an_installed_package(project, monkeypatch) -> None:
    """Opacus installs a package that is called examples."""
    (project / "examples").mkdir()
    (project / "examples" / "__init__.py").write_text("")
    (project / "examples" / "mine.py").write_text("from users_model import make\n")
    for name in [one for one in sys.modules if one.split(".")[0] == "examples"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [*sys.path, str(project)])
    assert isinstance(load_model("examples.mine:make"), nn.Module)
    for name in ("examples", "examples.mine"):
        monkeypatch.delitem(sys.modules, name)
