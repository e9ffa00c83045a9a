"""A model repository of Triton: the config says what the graph takes, and the version verifies."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from shell import shieldnet

from shieldnet.shipping.description import GraphFacts, TensorFacts
from shieldnet.shipping.triton import config_of

MODULE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Linear(6, 3)
"""
HASH = "0" * 64
TENSOR = re.compile(r'\{ name: "(.*?)" data_type: (\w+) dims: \[ (.*?) \](.*?) \}')


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "served.py").write_text(MODULE)
    rows = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=rows)
    return tmp_path


def harden(project: Path, *more: str):
    given = ("--example=x.npz", "--graph=onnx", "--layout=triton", "-o", "models/credit")
    return shieldnet(project, "harden", "served:model", *given, *more)


def test_the_config_is_that_of_the_graph_and_the_version_verifies(project) -> None:
    result = harden(project)
    assert result.returncode == 0, result.stderr
    folder = project / "models" / "credit"
    config = (folder / "config.pbtxt").read_text()
    assert 'name: "credit"\nbackend: "onnxruntime"\nmax_batch_size: 1024\n' in config
    session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"))
    said = {name: (kind, dims) for name, kind, dims, _ in TENSOR.findall(config)}
    nodes = [*session.get_inputs(), *session.get_outputs()]
    assert said == {node.name: ("TYPE_FP32", str(node.shape[1])) for node in nodes}
    assert [node.shape[1] for node in nodes] == [6, 3]
    assert {path.name for path in folder.iterdir()} == {"config.pbtxt", "1"}
    verified = shieldnet(project, "verify", "models/credit/1")
    assert verified.returncode == 0, verified.stdout
    assert harden(project).returncode == 2
    assert harden(project, "--force").returncode == 0


def test_a_label_is_one_number_for_each_row() -> None:
    rows, labels = TensorFacts("x", (None, 4), "float32"), TensorFacts("y", (None,), "int64")
    config = config_of("m", GraphFacts("shield", HASH, HASH, (rows,), (labels,)))
    assert TENSOR.findall(config)[1] == ("y", "TYPE_INT64", "1", " reshape: { shape: [ ]")


def test_noise_is_not_left_to_clients_and_bad_input_writes_nothing(project) -> None:
    (project / "noisy.toml").write_text(
        'version = 1\noutputs = "logits"\n[[defense]]\nname = "RandomizedResponse"\nepsilon = 6.0\n'
    )
    for more, words in (
        (("--shield=noisy.toml",), "from the client, who could feed zeros"),
        (("--layout=kserve",), "--layout to be one of folder, triton"),
        (("--graph=pt2",), ""),
    ):
        if more == ("--graph=pt2",):
            given = ("--example=x.npz", *more, "--layout=triton", "-o", "models/credit")
            result, words = shieldnet(project, "harden", "served:model", *given), "--graph onnx"
        else:
            result = harden(project, *more)
        assert result.returncode == 2, result.stdout
        assert words in " ".join(result.stderr.split())
        assert not (project / "models").exists()
