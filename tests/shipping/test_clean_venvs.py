"""What was audited answers where there is only torch, or only ONNX Runtime and numpy.

The environments are made of links to what is installed here. With real ones, which pip fills:

    python -m venv --without-pip clean-torch && python -m venv --without-pip clean-onnx
    pip --python clean-torch install -c constraints.txt torch
    pip --python clean-onnx install -c constraints.txt onnxruntime numpy
    export CLEAN_TORCH=clean-torch CLEAN_ONNX=clean-onnx
    python -m pytest tests/shipping/test_clean_venvs.py
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from artifacts import Two, made
from clean_venv import CleanVenv

import shieldnet as sn
from shieldnet import runtime
from shieldnet.exporting.writing import graphs_of

ROWS = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)) * 4
ABSENT = ("shieldnet", "opacus", "captum", "scipy", "onnx", "safetensors", "pandas", "cryptography")

INSTALLED = """
import importlib.metadata, importlib.util, json
absent = json.loads({absent!r})
print(json.dumps({{
    "installed": [one.name for one in importlib.metadata.distributions()],
    "importable": [name for name in absent if importlib.util.find_spec(name)],
}}))
"""
PROGRAM = """
import torch
program = torch.export.load("hardened/model.pt2").module()
asked = torch.load("asked.pt")
torch.save([program(rows) for rows in asked], "answers.pt")
"""
SESSION = """
import sys; sys.path.insert(0, ".")
import numpy, onnxruntime
from runtime import Noise
session = onnxruntime.InferenceSession("hardened/model.onnx")
noise = Noise.of_session(session)
asked = numpy.load("asked.npz")
answers = {name: session.run(None, {"x": rows, **noise.draw(len(rows))})[0]
           for name, rows in asked.items()}
numpy.savez("answers.npz", **answers)
print(noise)
"""


@pytest.fixture(scope="module")
def torch_alone(tmp_path_factory) -> CleanVenv:
    real = os.environ.get("CLEAN_TORCH")
    return CleanVenv(tmp_path_factory.mktemp("torch"), "torch", made_by_hand=real)


@pytest.fixture(scope="module")
def onnx_runtime_alone(tmp_path_factory) -> CleanVenv:
    real = os.environ.get("CLEAN_ONNX")
    folder = tmp_path_factory.mktemp("onnx")
    return CleanVenv(folder, "onnxruntime", "numpy", made_by_hand=real)


def hardened(folder: Path, *chain: sn.Defense, graph: str) -> sn.Shield:
    """Writes a hardened folder with one graph, which verifies, and returns its shield."""
    shield = sn.Shield(Two().eval(), *chain)
    shield(ROWS)
    made(folder / "hardened", shield=shield, graphs=graphs_of(shield, ROWS, (graph,)))
    assert sn.verify(folder / "hardened", model=Two)
    return shield


def test_the_places_have_nothing_else(torch_alone, onnx_runtime_alone, tmp_path) -> None:
    for place, more in ((torch_alone, "onnxruntime"), (onnx_runtime_alone, "torch")):
        said = json.loads(place.run(INSTALLED.format(absent=json.dumps([*ABSENT, more])), tmp_path))
        assert said["importable"] == []
        assert {name.lower().replace("_", "-") for name in said["installed"]} == place.expected


def test_a_hardened_program_gives_the_audited_answers_with_torch_alone(
    torch_alone, tmp_path
) -> None:
    """Not even numpy is there."""
    shield = hardened(tmp_path, sn.TopK(2), sn.Round(1), graph="pt2")
    refused = ROWS.clone()
    refused[4, 1] = torch.nan
    torch.save([ROWS[:0], ROWS[:1], ROWS, refused], tmp_path / "asked.pt")
    torch_alone.run(PROGRAM, tmp_path)
    none, one, many, beside = torch.load(tmp_path / "answers.pt")
    assert none.shape == (0, 3)
    assert torch.equal(one, shield(ROWS[:1]))
    assert torch.equal(many, shield(ROWS))
    assert torch.isnan(beside[4]).all()
    assert torch.equal(beside[:4], shield(ROWS[:4]))


def test_a_hardened_graph_gives_the_audited_answers_with_onnx_runtime_and_numpy_alone(
    onnx_runtime_alone, tmp_path
) -> None:
    shield = hardened(tmp_path, sn.TopK(2), sn.Round(1), graph="onnx")
    np.savez(tmp_path / "asked.npz", none=ROWS[:0].numpy(), many=ROWS.numpy())
    shutil.copy(runtime.__file__, tmp_path)
    assert onnx_runtime_alone.run(SESSION, tmp_path) == "Noise(none)\n"
    answers = np.load(tmp_path / "answers.npz")
    assert answers["none"].shape == (0, 3)
    assert np.array_equal(answers["many"], shield(ROWS).numpy())


def test_a_hardened_graph_draws_fresh_noise_with_onnx_runtime_and_numpy_alone(
    onnx_runtime_alone, tmp_path
) -> None:
    """The winners are those of the shield in distribution, and no two draws are alike."""
    chain = (sn.ClipNorm(3.0), sn.GaussianNoise(2.0), sn.RandomizedResponse(3.0))
    shield = hardened(tmp_path, *chain, graph="onnx")
    many = ROWS[:1].repeat(4000, 1)
    np.savez(tmp_path / "asked.npz", one=many.numpy(), two=many.numpy())
    shutil.copy(runtime.__file__, tmp_path)
    said = onnx_runtime_alone.run(SESSION, tmp_path)
    assert said.startswith("Noise(noise_0: int32 (rows, 3), noise_1: int64 (rows")
    answers = np.load(tmp_path / "answers.npz")
    assert (answers["one"] != answers["two"]).any()
    shares = [np.bincount(one.argmax(-1), minlength=3) / 4000 for one in answers.values()]
    wanted = np.bincount(shield(many).numpy().argmax(-1), minlength=3) / 4000
    quiet = sn.Shield(Two().eval(), chain[0], chain[2])(many).numpy().argmax(-1)
    assert np.abs(np.bincount(quiet, minlength=3) / 4000 - wanted).max() > 0.1  # both noises tell
    assert np.abs(np.array(shares) - wanted).max() < 6 * (0.5 / 4000) ** 0.5  # six standard errors
