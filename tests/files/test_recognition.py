"""Real files of every kind that people bring: what is said of each, and that its line runs."""

import argparse
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.core.errors import DataError
from shieldnet.files.pickled import listed
from shieldnet.files.recognition import recognized
from shieldnet.files.sources import load_model
from shieldnet.files.weights import load_weights


class Net(nn.Module):
    """A user's module."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def net() -> nn.Module:
    return Net().eval()


def refusal(name: str) -> str:
    with pytest.raises(DataError) as refused:
        load_model(name)
    return str(refused.value)


def contents(kind: str, net: nn.Module) -> Any:
    state = net.state_dict()
    adam = torch.optim.Adam(net.parameters())
    net(torch.randn(3, 6)).sum().backward()
    adam.step()
    return {
        "module": net,
        "checkpoint": {"model": state, "optimizer": adam.state_dict(), "epoch": 3},
        "checkpoint of a module": {"epoch": 3, "model": net, "optimizer": adam.state_dict()},
        "lightning": {
            "pytorch-lightning_version": "2.1",
            "state_dict": state,
            "hyper_parameters": {"lr": 0.1},
            "optimizer_states": [adam.state_dict()],
        },
        "lightning with objects": {
            "pytorch-lightning_version": "2.1",
            "hparams": argparse.Namespace(lr=1),
            "state_dict": state,
        },
        "nested": {"optimizer": adam.state_dict(), "params": {"net": state}, "step": 1},
        "another name": {"epoch": 3, "weights_of_epoch": state},
    }[kind]


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "module",
            "is a whole Net, as torch.save.model. writes it, and contains pickled objects of ",
        ),
        ("checkpoint", r"is a checkpoint with more than weights in it \(model, optimizer, epoch\)"),
        ("checkpoint of a module", "is a checkpoint that contains pickled objects of .*Net"),
        ("lightning", "is a checkpoint of Lightning with more than weights in it"),
        (
            "lightning with objects",
            "is a checkpoint that contains pickled objects of argparse.Names",
        ),
        ("nested", r"more than weights in it \(optimizer, params, step\).*\['params'\]\['net'\]"),
        ("another name", r"is a checkpoint with .*\['weights_of_epoch'\]"),
    ],
)
def test_what_torch_saved_is_named_and_its_line_saves_the_weights(
    kind, words, is_legacy, net
) -> None:
    new = not is_legacy
    torch.save(contents(kind, net), "given.pt", _use_new_zipfile_serialization=new)
    message = refusal("given.pt")
    assert re.search(words, message), message
    (line,) = re.findall(r"(torch\.save\(torch\.load\(.*?'weights\.pt'\))\.", message)
    exec(line, {"torch": torch})  # noqa: S102 - a line of our own message, on our own file
    twin = Net()
    load_weights(twin, Path("weights.pt"), "twin")
    assert torch.equal(twin.head.weight, net.head.weight)


def test_nothing_of_a_file_is_run_to_recognize_it(net) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("a user's file was unpickled",))

    for held in (Bomb(), {"model": Bomb()}, {"state_dict": net.state_dict(), "x": Bomb()}):
        for new in (True, False):
            torch.save(held, "given.pt", _use_new_zipfile_serialization=new)
            assert "it is not unpickled" in refusal("given.pt")
        Path("given.sav").write_bytes(pickle.dumps(held))
        assert "it is not unpickled" in refusal("given.sav") or isinstance(held, dict)


@pytest.mark.parametrize("held", [torch.ones(3), [torch.ones(3)]])
def test_a_tensor_or_a_list_is_no_model(held) -> None:
    torch.save(held, "given.pt")
    words = f"contains a {type(held).__name__} that torch.save wrote, neither a model nor a dict"
    assert words in refusal("given.pt")


@pytest.mark.parametrize("size", [1, 6, 20])
def test_safetensors_are_told_from_pickles_whatever_their_first_byte(size) -> None:
    firsts = set()
    for pad in range(200):
        save_file({"a" * (size + pad): torch.ones(2)}, "w.safetensors")
        firsts.add(Path("w.safetensors").read_bytes()[0])
        assert recognized(Path("w.safetensors")).kind == "safetensors"
    assert 0x80 in firsts, "as a pickle begins"


@pytest.mark.parametrize("name", ["e.joblib", "e.pkl", "e.sav", "e.pt", "compressed.sav"])
def test_an_estimator_is_refused_with_a_function_that_works(name) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    rows = np.random.default_rng(0).normal(size=(30, 3))
    estimator = linear.LogisticRegression().fit(rows, np.arange(30) % 2)
    joblib.dump(estimator, name, compress=3 if name.startswith("compressed") else 0)
    message = refusal(name)
    assert "is a pickle" in message
    assert "Export a scikit-learn model to .onnx with skl2onnx" in message
    (line,) = re.findall(r"returns (joblib\..*\))\.", message)
    shield = sn.harden(eval(line, {"joblib": joblib}))  # noqa: S307 - our own message
    answers = shield(rows)
    assert (answers.argmax(1) == estimator.predict(rows)).all()
    regressor = linear.LinearRegression().fit(rows, rows[:, 0])
    joblib.dump(regressor, name, compress=3 if name.startswith("compressed") else 0)
    (line,) = re.findall(r"returns (joblib\..*\))\.", refusal(name))
    loaded = eval(line, {"joblib": joblib})  # noqa: S307 - our own message
    told = sn.Shield(loaded, sn.ClipRange(-1, 1), sn.RoundTo(0.5)).predict(rows)
    assert set(told.tolist()) <= {-1.0, -0.5, 0.0, 0.5, 1.0}


@pytest.mark.filterwarnings("ignore")
def test_torchscript_holds_weights_that_a_line_takes_out(net) -> None:
    torch.jit.trace(net, torch.randn(2, 6)).save("ts.pt")
    assert "is TorchScript" in refusal("ts.pt")
    with pytest.raises(DataError, match="It is TorchScript, which can write files") as refused:
        load_weights(Net(), Path("ts.pt"), "twin")
    (line,) = re.findall(r"(torch\.save\(torch\.jit.*?'weights\.pt'\))\.", str(refused.value))
    exec(line, {"torch": torch})  # noqa: S102 - a line of our own message, on our own file
    twin = Net()
    load_weights(twin, Path("weights.pt"), "twin")
    assert torch.equal(twin.head.weight, net.head.weight)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_program_of_one_batch_size_is_refused_with_an_export_that_works(rows, net) -> None:
    example = torch.randn(rows, 6)
    torch.export.save(torch.export.export(net, (example,)), "fixed.pt2")
    with pytest.raises(DataError, match="exported for one batch size") as refused:
        sn.harden(load_model("fixed.pt2"))(torch.randn(8, 6))
    (call,) = re.findall(r"any: (torch\.export\.export\(.*\))\.", str(refused.value))
    held = {"torch": torch, "model": net, "example": torch.randn(4, 6)}
    program = eval(call, held)  # noqa: S307 - a line of our own message
    torch.export.save(program, "any.pt2")
    for size in (1, 8):
        assert sn.harden(load_model("any.pt2"))(torch.randn(size, 6)).shape == (size, 4)


@pytest.mark.filterwarnings("ignore")
def test_an_onnx_model_of_one_batch_size_is_refused_with_an_export_that_works(net) -> None:
    pytest.importorskip("onnxruntime")
    torch.onnx.export(net, (torch.randn(4, 6),), "fixed.onnx", dynamo=False)
    with pytest.raises(DataError, match="It was exported for batches of 4") as refused:
        sn.harden(load_model("fixed.onnx"))(torch.randn(8, 6))
    (call,) = re.findall(r"any size: (torch\.onnx\.export\(.*\))", str(refused.value))
    exec(call, {"torch": torch, "model": net, "example": torch.randn(4, 6)})  # noqa: S102 - ours
    assert sn.harden(load_model("model.onnx"))(torch.randn(8, 6)).shape == (8, 4)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_listed_and_never_run(protocol) -> None:
    found = listed(pickle.dumps({"a": 1, "model": argparse.Namespace()}, protocol), ("model",))
    assert found.is_dict
    assert "argparse.Namespace" in found.classes
    assert listed(b"\x80\x04damaged").classes == ()
    assert listed(pickle.dumps(argparse.Namespace(), protocol)).top in (
        "argparse.Namespace",
        "copyreg._reconstructor",
        "copy_reg._reconstructor",
    )


def test_a_skops_file_is_recognized_and_loaded_by_a_factory_of_ones_own(tmp_path) -> None:
    path = tmp_path / "model.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", '{"__class__": "Pipeline"}')
    words = r"is a skops file.*get_untrusted_types\(file=.*skops.io.load\(.*trusted="
    with pytest.raises(sn.errors.DataError, match=words):
        load_model(str(path))
    renamed = path.rename(tmp_path / "model.zip")
    with pytest.raises(sn.errors.DataError, match=words):
        load_model(str(renamed))
