"""The commands that write and verify a hardened folder say what was done, and what to do next."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from artifacts import changed_json, keys, report_of, rewritten, shield_of
from shell import shieldnet

import shieldnet as sn

ROOT = Path(__file__).parents[2]
MODULE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Linear(6, 3)

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.text, self.image = nn.Linear(7, 3), nn.Linear(7, 2)

    def forward(self, text, image):
        return {"topic": self.text(text), "intent": self.image(image)}

def pair():
    import shieldnet as sn
    torch.manual_seed(0)
    kinds = {"topic": "logits", "intent": "logits"}
    return sn.Shield(Pair().eval(), sn.Label(), outputs=kinds, also={"intent": (sn.Label(),)})
"""


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "served.py").write_text(MODULE)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(20, 6)).astype(np.float32))
    named = {name: rng.normal(size=(20, 7)).astype(np.float32) for name in ("text", "image")}
    np.savez(tmp_path / "pair.npz", **named)
    return tmp_path


def test_a_signed_folder_with_a_graph_says_how_it_is_verified_and_served(project) -> None:
    keys(project)
    result = shieldnet(
        project,
        *("harden", "served:model", "--example=x.npz", "--graph=onnx", "--key=key.pem", "-o", "h"),
    )
    assert result.returncode == 0, result.stderr
    assert "load_hardened('h', model='served:model', public_key='public.pem')" in result.stdout
    checked = shieldnet(project, "verify", "h")
    assert checked.returncode == 0
    assert checked.stdout.strip().endswith(
        "h verifies, except for the signature, the graphs, the report and the policy, which were "
        "not checked."
    )
    given = ("--public-key=key.pub.pem", "--model=served:model", "--require=graphs")
    checked = shieldnet(project, "verify", "h", *given, "--require=signature")
    assert checked.returncode == 0, checked.stderr
    assert "except for the report and the policy" in checked.stdout
    checked = shieldnet(project, "verify", "h", *given, "--require=report")
    assert checked.returncode == 1
    assert "report: required, and not checked" in checked.stderr
    checked = shieldnet(project, "verify", "h", "--policy=default")
    assert checked.returncode == 1


def test_both_commands_round_a_bound_up(project) -> None:
    result = shieldnet(project, "harden", "served:model", "--classes=3", "-o", "h")
    bits = result.stdout.partition("bits ")[2].partition(":")[0]
    assert f"{bits} bits" in shieldnet(project, "verify", "h").stdout


def test_several_inputs_by_name_are_described_by_name(project) -> None:
    import json

    result = shieldnet(
        project, "harden", "served:pair", "--example=pair.npz", "--graph=pt2", "-o", "h"
    )
    assert result.returncode == 0, result.stderr
    inputs = json.loads((project / "h" / "model.json").read_bytes())["inputs"]
    assert [(one["name"], one["shape"]) for one in inputs] == [
        ("text", [None, 7]),
        ("image", [None, 7]),
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--report=report.json",), "-o report.json"),
        (("--report=served.py", "--policy=none.toml"), "shieldnet policy init"),
        (("--key=none.pem",), "Cannot read the key none.pem"),
        (("--example=x.npz", "--graph=so"), "Expected --graph to be one of onnx, pt2"),
        (("--force", "-o", f"new/{'n' * 300}/h"), "Cannot write"),
        (("-o", "served.py/h"), "served.py is a file"),
    ],
)
def test_what_is_cheap_is_checked_before_the_model_is_loaded(project, given, words) -> None:
    result = shieldnet(project, "harden", "nowhere:model", "-o", "h", *given)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (project / "h").exists()
    assert not (project / "new").exists()


def test_bad_input_is_found_without_loading_torch(project) -> None:
    code = (
        "import sys\nfrom shieldnet.__main__ import main\n"
        "sys.argv = ['shieldnet', 'harden', 'served:model', '-o', 'h', '--report', 'none.json']\n"
        "try: main()\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=project,
        env=environment,
        check=False,
    )
    assert result.stdout.strip().endswith("2 False"), result.stderr


def test_no_key_and_no_escape_of_a_terminal_is_printed(project) -> None:
    private, _ = keys(project)
    text = private.read_text()
    result = shieldnet(project, "harden", "served:model", "--classes=3", "-o", "h", "--key", text)
    assert result.returncode == 2
    assert text.splitlines()[1] not in result.stderr + result.stdout
    assert shieldnet(project, "harden", "served:model", "--classes=3", "-o", "h").returncode == 0
    data = changed_json((project / "h" / "model.json").read_bytes(), source="\x1b[2Jall good")
    rewritten(project / "h", model__json=data)
    checked = shieldnet(project, "verify", "h")
    assert checked.returncode == 1
    assert "\x1b" not in checked.stdout + checked.stderr
    with pytest.raises(sn.errors.VerificationFailed):
        sn.load_hardened(project / "h")
    name = "x\x1b[2J"
    report_of(shield_of(), name=name).save(project / "other.json")
    given = ("--classes=3", "--report=other.json", "-o", "other")
    refused = shieldnet(project, "harden", "served:model", *given)
    assert refused.returncode == 2
    assert "\x1b" not in refused.stderr
