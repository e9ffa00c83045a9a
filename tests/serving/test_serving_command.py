"""``shieldnet serve`` takes a hardened folder into service, or says what is missing."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import detectors
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from shell import Finished, shieldnet
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

import shieldnet as sn
from shieldnet.core.errors import ConfigError, VerificationFailed
from shieldnet.demo import digits, digits_network, divide, train
from shieldnet.serving.app.folder import name_of, served_folder
from shieldnet.serving.app.keys import add_key
from shieldnet.serving.app.running import bound

ROOT = Path(__file__).parents[2]
MODEL = "shieldnet.demo:digits_network"
BUDGET = ("--ledger", "sqlite:///budget.db", "--queries-per-client", "5")
WATCHED = (*BUDGET, "--keys", "keys.toml", "--model", MODEL, "--watch")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The demo's model, trained by its own code, hardened in a folder."""
    folder = tmp_path_factory.mktemp("project")
    task = digits()
    split = divide(task)
    save_file(train(task, split, epochs=3).state_dict(), folder / "model.safetensors")
    natural = split.auxiliary[0].numpy()
    np.savez(folder / "x.npz", x=natural[:8])
    np.savez(folder / "many.npz", x=natural[:400])
    for arguments in (("--example", "x.npz", "-o", "h"), ("--classes", "10", "-o", "bare")):
        done = shieldnet(folder, "harden", MODEL, "--weights", "model.safetensors", *arguments)
        assert done.returncode == 0, done.stderr
    (folder / "key").write_text(add_key(folder / "keys.toml", "alice"))
    return folder


def serve(folder: Path, *arguments: str) -> Finished:
    return shieldnet(folder, "serve", *arguments)


def test_the_demos_folder_answers_the_real_triton_client_until_its_budget_is_spent(
    project,
) -> None:
    # 4 answers of log2(10 x 4) bits.
    budget = ["--ledger", "sqlite:///bits.db", "--bits-per-client", "22", "--window", "day"]
    command = [sys.executable, "-m", "shieldnet", "serve", "h", "--model", MODEL, *budget]
    command += ["--keys", "keys.toml", "--name", "credit", "--port", "0", "--watch", "many.npz"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        said = process.stderr.readline()
        assert re.match(r"Serving credit, .* at http://127\.0\.0\.1:", said), (
            said + process.stderr.read()
        )
        client = InferenceServerClient(said.split()[-1].removeprefix("http://"))
        headers = {"X-API-Key": (project / "key").read_text()}
        with np.load(project / "x.npz") as arrays:
            rows = arrays["x"][:2]
        given = InferInput("input", [2, 1, 8, 8], "FP32").set_data_from_numpy(rows)
        for _ in range(2):
            answer = client.infer("credit", [given], headers=dict(headers)).as_numpy("answer")
        with pytest.raises(InferenceServerException) as refused:
            client.infer("credit", [given], headers=dict(headers))
        client.close()
        process.send_signal(signal.SIGTERM)
        lines = process.stderr.read()
        assert process.wait(60) == 0, lines
    assert refused.value.status() == "429"
    shield = sn.load_hardened(project / "h", model=digits_network())
    assert np.array_equal(answer, shield(torch.from_numpy(rows)).numpy())
    assert lines.count('"status": 200') == 2
    assert lines.count('"reason": "budget"') == 1
    assert "alice" not in lines


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("h", *BUDGET, "--keys", "none.toml"), "Cannot read the keys from none.toml"),
        (("none", *BUDGET, "--keys", "keys.toml"), "none"),
        (("h", *BUDGET, "--keys", "keys.toml"), "The folder holds the weights"),
        (("h", *BUDGET, "--keys", "keys.toml", "--max-rows", "0"), "Expected --max-rows >= 1"),
        (("h", *BUDGET, "--keys", "keys.toml", "--timeout-s", "0"), "Expected a finite --timeout"),
        (("h", *BUDGET, "--keys", "keys.toml", "--tls-key", "k.pem"), "both --tls-certificate"),
        (("bare", *BUDGET, "--keys", "keys.toml", "--model", MODEL), "--example"),
        (
            ("h", *BUDGET, "--keys", "keys.toml", "--model", MODEL, "--queries-in-all=0"),
            "Expected queries >= 1",
        ),
        (("h", *BUDGET, "--keys", "keys.toml", "--harder", "strict"), "Expected --watch"),
        (("h", *WATCHED, "x.npz"), "at least 200 natural inputs"),
        (("h", *WATCHED, "many.npz", "--max-rows", "300"), "Expected --max-rows <= 256"),
        (("h", *WATCHED, "many.npz", "--harder", "weak"), "Expected --harder"),
        (
            ("h", "--ledger", "sqlite:///b.db", "--keys", "keys.toml", "--model", MODEL),
            "--bits-per-client, --mu-per-client, --queries-per-client",
        ),
    ],
)
def test_what_is_missing_is_named_by_its_flag(project, arguments, words) -> None:
    done = serve(project, *arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr


def test_a_changed_folder_is_not_served(project, tmp_path) -> None:
    for path in (project / "h").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "shield.toml").write_bytes(b"version = 1\n")
    with pytest.raises(VerificationFailed, match="shield.toml was changed"):
        served_folder(tmp_path, digits_network())


def test_a_served_shield_keeps_to_the_size_that_its_certificate_is_about(project) -> None:
    shield, inputs = served_folder(project / "h", digits_network())
    assert shield.extent == sn.Extent(10)
    (only,) = inputs
    assert (only.name, only.shape, only.dtype) == ("input", (None, 1, 8, 8), "float32")


def test_a_folder_without_a_certificate_is_not_served(tmp_path) -> None:
    sn.save_hardened(sn.harden(digits_network().eval()), tmp_path / "h", model=MODEL)
    with pytest.raises(ConfigError, match="has no certificate"):
        served_folder(tmp_path / "h", digits_network())


def test_a_detector_is_served_from_python_alone(tmp_path) -> None:
    images, _ = detectors.pictures(4, 0)
    fields = {"outputs": {"scores": "binary_probabilities"}, "drop": ("boxes", "labels")}
    shield = sn.harden(detectors.Finds(), **fields, example=images)
    sn.save_hardened(shield, tmp_path / "h")
    with pytest.raises(ConfigError, match=r"list of dicts.*sn\.Guard.*queries_per_client"):
        served_folder(tmp_path / "h", detectors.Finds())


def test_a_version_in_a_triton_repository_has_its_models_name() -> None:
    assert name_of(Path("models/credit/1")) == ("credit", "1")
    assert name_of(Path("hardened/")) == ("hardened", "1")


def test_a_port_that_is_taken_is_named() -> None:
    with bound("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port={port}"):
            bound("127.0.0.1", port)


def test_an_answer_in_two_writes_waits_for_no_acknowledgement() -> None:
    with (
        bound("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as taken,
    ):
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
