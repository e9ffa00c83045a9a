import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import shieldnet as sn
from shieldnet.core.errors import ConfigError, DataError
from shieldnet.files import sources
from shieldnet.files.sources import (
    common_classes,
    common_columns,
    common_groups,
    load_examples,
    load_model,
    load_training,
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's folder with a module of their own."""
    (tmp_path / "users_model.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Linear(3, 2), nn.Dropout())\n"
        "def wrong():\n    return 7\n"
        "def answers(x):\n    return x\n"
        "def itself():\n    return itself\n"
        "import functools\n"
        "def two(a, *, b):\n    return a + b\n"
        "def of_two():\n    return two\n"
        "def given(f):\n"
        "    @functools.wraps(f)\n"
        "    def with_width(*args):\n        return f(3)\n"
        "    return with_width\n"
        "@given\n"
        "def decorated(width):\n    return nn.Linear(width, 2)\n"
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


def test_a_decorator_may_give_a_factory_its_arguments(project) -> None:
    assert isinstance(load_model("users_model:decorated"), nn.Linear)
    two = sn.Shield(load_model("users_model:of_two"), sn.Label(), outputs="logits")
    answer = two(3 * np.eye(3), b=np.full((3, 3), -1.0))
    assert answer.argmax(1).tolist() == [0, 1, 2]


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
    with pytest.raises(DataError, match="is not unpickled|not a valid safetensors"):
        load_model("users_model:make", str(path))


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("users_model", None, "Expected MODEL as package.module:factory.*got 'users_model'"),
        ("users_model:nothing", None, "cannot load 'users_model:nothing'"),
        ("no_such_module:make", None, "cannot load 'no_such_module:make'"),
        ("users_model:wrong", None, "returned int"),
        (
            "users_model:answers",
            None,
            r"answers cannot be called without arguments: it takes \(x\)\. If it is the model "
            r"itself, .*: def model\(\): return answers\.",
        ),
        ("users_model:itself", None, "returned the function itself, which takes no input"),
        (
            "users_model:make",
            "nowhere.pt",
            "Cannot read the weights from nowhere.pt: no such",
        ),
    ],
)
def test_what_is_no_model_is_refused(project, name, weights, words) -> None:
    with pytest.raises(DataError, match=words):
        load_model(name, weights)


def test_weights_of_another_model_are_refused_with_what_does_not_fit(project) -> None:
    state = {"0.weight": torch.ones(3, 3), "2.weight": torch.ones(2)}
    save_file(state, project / "weights.safetensors")
    with pytest.raises(
        DataError,
        match=r"does not fit the model of users_model:make: it lacks 0.bias; the model has no "
        r"2.weight; 0.weight has shape \(3, 3\), the model's has \(2, 3\)\.",
    ):
        load_model("users_model:make", str(project / "weights.safetensors"))
    state = {"0.weight": torch.full((2, 3), 0.1, dtype=torch.float64), "0.bias": torch.ones(2)}
    save_file(state, project / "weights.safetensors")
    with pytest.raises(DataError, match="0.weight is torch.float64, .* which would lose digits"):
        load_model("users_model:make", str(project / "weights.safetensors"))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_module.", "module._orig_mod.", "model."]
)
def test_prefixes_of_wrappers_are_taken_off_and_named(project, caplog, prefix) -> None:
    state = {f"{prefix}0.weight": torch.ones(2, 3), f"{prefix}0.bias": torch.zeros(2)}
    torch.save(state, project / "weights.pt")
    loaded = load_model("users_model:make", str(project / "weights.pt"))
    assert torch.equal(loaded[0].weight, torch.ones(2, 3))
    assert "weights.pt: removed the prefix" in caplog.text
    torch.save(state | {"other": torch.ones(1)}, project / "weights.pt")
    with pytest.raises(DataError, match="it lacks 0.weight, 0.bias; .* other .* is .*'s: save"):
        load_model("users_model:make", str(project / "weights.pt"))


def test_a_part_that_was_compiled_is_named_too(project, caplog) -> None:
    state = {"0._orig_mod.weight": torch.ones(2, 3), "0._orig_mod.bias": torch.zeros(2)}
    torch.save(state, project / "weights.pt")
    load_model("users_model:make", str(project / "weights.pt"))
    assert "the prefix _orig_mod. of torch.compile" in caplog.text
    state["0.extra"] = torch.ones(2)
    torch.save(state, project / "weights.pt")
    with pytest.raises(DataError, match=r"\(_orig_mod. is torch.compile's: save the state_dict of"):
        load_model("users_model:make", str(project / "weights.pt"))


class Net(nn.Linear):
    """A user's class that was pickled whole."""


def given(name: str, path) -> None:
    """Writes what people really give."""
    state = nn.Linear(3, 2).state_dict()
    if name == "module":
        torch.save(Net(3, 2), path)
    elif name == "legacy module":
        torch.save(Net(3, 2), path, _use_new_zipfile_serialization=False)
    elif name == "state_dict":
        torch.save(state, path)
    elif name == "legacy state_dict":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif name == "checkpoint":
        torch.save({"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {}}, path)
    elif name == "unnamed checkpoint":
        torch.save({"epoch": 3, "weights": state}, path)
    elif name == "lightning":
        torch.save({"pytorch-lightning_version": "2.5", "state_dict": state}, path)
    elif name == "safetensors":
        save_file(state, path)
    elif name == "keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
    elif name == "hdf5":
        path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(90))
    elif name == "joblib":
        path.write_bytes(pickle.dumps(Net(3, 2)))
    elif name == "exported":
        torch.export.save(torch.export.export(nn.ReLU(), (torch.ones(3),)), path)
    elif name == "hugging face":
        path.mkdir()
        (path / "config.json").write_text("{}")
    elif name == "folder":
        path.mkdir()
    else:
        path.write_text("words")


FACTORY = "package.module:factory --weights"


@pytest.mark.parametrize(
    ("name", "file", "as_model", "as_weights"),
    [
        ("module", "m.pt", f"pickled objects of .*test_sources.Net.*{FACTORY} weights.pt", None),
        ("legacy module", "m.pth", f"contains pickled objects.*{FACTORY} weights.pt", None),
        ("state_dict", "m.pt", f"contains weights without their model.*{FACTORY} m.pt", ""),
        ("legacy state_dict", "m.pth", f"contains weights without .*{FACTORY} m.pth", ""),
        ("state_dict", "m.bin", f"contains weights without their model.*{FACTORY} m.bin", ""),
        (
            "checkpoint",
            "m.pt",
            r"is a checkpoint with more than weights in it \(epoch, model_state_dict, optimizer_"
            r"state_dict\). Save .*weights_only=True\)\['model_state_dict'\], 'weights.pt'\)",
            None,
        ),
        ("unnamed checkpoint", "m.pt", r"Save only what seems to be model.state_dict\(\)", None),
        ("lightning", "m.ckpt", r"is a checkpoint of Lightning .*\['state_dict'\]", None),
        ("safetensors", "m.safetensors", f"contains weights without .*{FACTORY} m.safetensors", ""),
        (
            "safetensors",
            "m.pt",
            f"contains weights without .*{FACTORY} m.pt",
            "rename it to end in",
        ),
        ("keras", "m.keras", "is a Keras model.*returns keras.saving.load_model", None),
        ("hdf5", "m.h5", "is a Keras model", None),
        ("joblib", "m.joblib", "is a pickle.* it is not unpickled. Export a scikit-learn", None),
        (
            "joblib",
            "m.pkl",
            "with skl2onnx, or, if you trust it, pass package.module:factory",
            None,
        ),
        ("exported", "m.pt", "rename it to end in .pt2", "not weights for another"),
        ("hugging face", "m", "AutoModelForSequenceClassification.from_pretrained", "no such file"),
        ("folder", "m.pt2", "is a folder. Pass a file ending in", "no such file"),
        ("text", "m.pt", "is not a supported model file", None),
        ("state_dict", "m.pt2", "contains weights without their model", ""),
        ("state_dict", "m.onnx", "contains weights without their model", ""),
    ],
)
def test_what_people_give_gets_its_own_words_and_the_way_that_works(
    project, name, file, as_model, as_weights
) -> None:
    given(name, project / file)
    with pytest.raises(DataError, match=as_model):
        load_model(file)
    words = as_model if as_weights is None else as_weights
    if words:
        with pytest.raises(DataError, match=words):
            load_model("users_model:make", file)
    elif file.endswith((".pt", ".safetensors")):
        with pytest.raises(DataError, match="it lacks 0.weight, 0.bias"):
            load_model("users_model:make", file)


def test_examples_come_from_npz_and_from_factories(project) -> None:
    np.savez("data.npz", x=np.ones((4, 3), np.float32), y=np.arange(4))
    assert len(load_examples("data.npz", "members").examples) == 4
    np.savez("inputs.npz", x=np.ones((4, 3), np.float32))
    assert load_examples("inputs.npz", "auxiliary").examples.labels is None
    assert len(load_examples("users_model:data", "members").examples) == 2


def test_pickled_arrays_are_refused(project) -> None:
    np.savez("data.npz", x=np.array([Bomb()], dtype=object))
    with pytest.raises(DataError, match="Expected numbers in x .* got object .pickles are never"):
        load_examples("data.npz", "members")
    np.save(project / "lone", np.ones(3))
    (project / "lone.npy").rename(project / "lone.npz")
    with pytest.raises(DataError, match="not a readable archive"):
        load_examples("lone.npz", "members")
    (project / "pickle.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="not a readable archive"):
        load_examples("pickle.npz", "members")


def test_truncated_and_missing_files_are_refused(project) -> None:
    np.savez("data.npz", x=np.ones((400, 3)))
    whole = (project / "data.npz").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 5):
        (project / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(DataError, match="not a readable archive"):
            load_examples("cut.npz", "members")
    with pytest.raises(DataError, match="Cannot read the members from nowhere.npz"):
        load_examples("nowhere.npz", "members")


def test_files_without_inputs_and_other_names_are_refused(project) -> None:
    np.savez("data.npz", z=np.ones(3))
    with pytest.raises(DataError, match="Expected arrays x and y in data.npz"):
        load_examples("data.npz", "members")
    with pytest.raises(DataError, match="as a file ending in .npz .*got 'data.xls'"):
        load_examples("data.xls", "members")


def test_fractions_of_a_table_that_are_whole_are_labels_and_words_are_numbered(project) -> None:
    np.savez("data.npz", x=np.ones((4, 3)), y=np.arange(4.0))
    found = load_examples("data.npz", "members").examples
    assert found.labels.tolist() == [0, 1, 2, 3]
    assert found.inputs.dtype == torch.float32
    np.savez("data.npz", x=np.ones((2, 3)), y=np.array(["cat", "dog"]))
    found = load_examples("data.npz", "members")
    assert found.examples.labels.tolist() == [0, 1]
    assert found.classes == ("cat", "dog")
    np.savez("data.npz", x=np.ones((2, 3)), y=np.array([0.5, 1]))
    with pytest.raises(DataError, match="Expected whole-number labels"):
        load_examples("data.npz", "members")


def test_a_class_has_one_number_in_all_sets(project, caplog) -> None:
    """Folders and words were numbered set by set: an accuracy of 0, and not a word."""
    sets = {}
    for role, words in (("members", ["dog", "cat"]), ("nonmembers", ["dog", "emu", "dog"])):
        np.savez(f"{role}.npz", x=np.ones((len(words), 2)), y=np.array(words))
        sets[role] = load_examples(f"{role}.npz", role)
    np.savez("auxiliary.npz", x=np.ones((2, 2)))
    sets["auxiliary"] = load_examples("auxiliary.npz", "auxiliary")
    with caplog.at_level("INFO", "shieldnet"):
        found = common_classes(sets)
    assert "classes: 0 = cat, 1 = dog, 2 = emu" in caplog.text
    assert found["members"].examples.labels.tolist() == [1, 0]
    assert found["nonmembers"].examples.labels.tolist() == [1, 2, 1]
    assert found["auxiliary"].examples.labels is None
    np.savez("numbers.npz", x=np.ones((2, 2)), y=np.arange(2))
    with pytest.raises(DataError, match="got words for the members and numbers for the nonmembers"):
        common_classes({**sets, "nonmembers": load_examples("numbers.npz", "nonmembers")})


def test_names_that_are_all_numbers_are_the_numbers_of_classes(project) -> None:
    np.savez("data.npz", x=np.ones((3, 2)), y=np.array(["7", "10", "2"]))
    found = load_examples("data.npz", "members")
    assert found.examples.labels.tolist() == [7, 10, 2]
    assert found.classes == ()
    np.savez("data.npz", x=np.ones((3, 2)), y=np.array(["07", "7", "2"]))
    assert load_examples("data.npz", "members").classes == ("07", "2", "7")


def test_training_and_heldout_records_share_their_classes(project) -> None:
    (project / "data.csv").write_text("a,class\n1,dog\n2,emu\n")
    (project / "others.csv").write_text("a,class\n1,cat\n2,emu\n")
    sets = load_training({"data": "data.csv", "heldout": "others.csv", "validation": None})
    assert sets["data"][1].tolist() == [1, 2]
    assert sets["heldout"][1].tolist() == [0, 2]
    assert sets["validation"] is None
    sets = load_training({"data": "users_model:data", "heldout": "others.csv"})
    assert sets["heldout"][1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.csv", "a,b,Label\n1,2,0\n3,4,1\n"),
        ("data.csv", "a, b, label\n1,2,0\n3,4,1\n"),
        ("data.csv", "a;b;class\n1;2;0\n3;4;1\n"),
        ("data.csv", "a\tb\tTARGET\n1\t2\t0\n3\t4\t1\n"),
        ("data.CSV", "a,b,y\n1,2,0\n3,4,1\n"),
        ("data.tsv", "a\tb\ty\n1\t2\t0\n3\t4\t1\n"),
        ("data.csv", "\ufeffa,b,y\n1,2,0\n3,4,1\n"),
    ],
)
def test_tables_are_read_as_people_write_them(project, name, text) -> None:
    (project / name).write_text(text, encoding="utf-8")
    found = load_examples(name, "members")
    assert found.columns == ("a", "b")
    assert found.examples.inputs.tolist() == [[1, 2], [3, 4]]
    assert found.examples.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,0\n3,4,1\n", "column names in the first line of data.csv, got numbers: 1, 2, 0"),
        (",a,label\n0,1,0\n1,2,1\n", "a column named '', pandas' name of row numbers"),
        ("Unnamed: 0,a,label\n0,1,0\n", "a column named 'Unnamed: 0', pandas'"),
    ],
)
def test_a_table_without_names_or_with_row_numbers_is_refused(project, text, words) -> None:
    (project / "data.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        load_examples("data.csv", "members")


def test_a_pair_of_npy_files_is_inputs_and_labels(project) -> None:
    np.save("x.npy", np.ones((4, 3)))
    np.save("y.npy", np.arange(4))
    assert load_examples("x.npy", "members").examples.labels is None
    assert load_examples("x.npy,y.npy", "members").examples.labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="Cannot read the members from no.npy"):
        load_examples("x.npy,no.npy", "members")


def test_a_table_gives_columns_and_groups(project) -> None:
    (project / "data.csv").write_text("age,sex,place,label\n1,0,north,2\n3,1,south,0\n")
    found = load_examples("data.csv", "members", groups=("sex", "place"))
    assert found.columns == ("age", "sex")
    assert found.examples.inputs.tolist() == [[1, 0], [3, 1]]
    assert found.examples.labels.tolist() == [2, 0]
    assert found.groups["sex"].tolist() == [0, 1]
    assert found.groups["place"].tolist() == ["north", "south"]
    assert common_groups(found, found)["sex"][1].tolist() == [0, 1]
    other = load_examples("data.csv", "members", label="age", groups=("place",))
    assert other.columns == ("sex", "label")
    with pytest.raises(DataError, match="Expected the same columns in every table"):
        common_columns([found, other])
    assert common_columns([found, found]) == ("age", "sex")


def test_groups_of_an_npz_are_arrays_of_it(project) -> None:
    np.savez("data.npz", x=np.ones((2, 3)), y=np.arange(2), sex=np.array(["f", "m"]))
    assert load_examples("data.npz", "members", groups=("sex",)).groups["sex"].tolist() == [
        "f",
        "m",
    ]
    with pytest.raises(DataError, match="has no array age for --group"):
        load_examples("data.npz", "members", groups=("age",))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("users_model:data", {"label": "y"}, "--label names a column of a table"),
        ("users_model:data", {"groups": ("a",)}, "--group names a column of a table or an array"),
    ],
)
def test_labels_and_groups_of_what_has_none_are_refused(project, name, settings, words) -> None:
    with pytest.raises(ConfigError, match=words):
        load_examples(name, "members", **settings)


def test_training_data_needs_labels(project) -> None:
    np.savez("data.npz", x=np.ones((4, 3)))
    with pytest.raises(DataError, match="Expected labels in data.npz, got inputs only"):
        load_training({"data": "data.npz"})
    (project / "data.csv").write_text("a,target\n1,0\n2,1\n")
    inputs, labels = load_training({"data": "data.csv"})["data"]
    assert inputs.shape == (2, 1)
    assert labels.tolist() == [0, 1]


def test_a_models_file_holds_its_own_weights(project) -> None:
    with pytest.raises(ConfigError, match="model.pt2 contains its weights: omit --weights"):
        load_model("model.pt2", "weights.safetensors")
    for name in ("model.pt2", "model.onnx", "model.pt", "model.ts", "model.keras"):
        with pytest.raises(DataError, match=f"Cannot read the model from {name}"):
            load_model(name)


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


def test_a_factory_of_a_module_called_onnx_is_no_file(tmp_path, monkeypatch) -> None:
    package = tmp_path / "servedmodels"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "onnx.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 2)\n")
    monkeypatch.chdir(tmp_path)
    assert load_model("servedmodels.onnx:make")(torch.zeros(1, 2)).shape == (1, 2)


def test_a_form_of_ones_own_takes_a_function_and_a_line_of_the_table(tmp_path, monkeypatch) -> None:
    def toy(name, role, label, groups) -> sources.Read:
        lines = Path(name).read_text().split("\n")
        rows = np.array([[float(word) for word in line.split()] for line in lines])
        return sources.Read(rows, groups={group: np.arange(len(rows)) for group in groups})

    reader = sources.Reader("a .toy", lambda name: name.endswith(".toy"), toy, takes_groups=True)
    monkeypatch.setattr(sources, "READERS", (*sources.READERS, reader))
    (tmp_path / "members.toy").write_text("1 2\n3 4")
    loaded = load_examples(str(tmp_path / "members.toy"), "members", groups=("place",))
    assert loaded.examples.inputs.tolist() == [[1, 2], [3, 4]]
    assert loaded.groups["place"].tolist() == [0, 1]
    with pytest.raises(DataError, match=r"Expected the members as .*, a \.toy, or package\.module"):
        load_examples("members.odd", "members")
