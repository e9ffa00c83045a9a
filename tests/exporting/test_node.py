"""The hardened graph answers in Node.js as it does here."""

import json
import subprocess
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import torch
from torch import nn

import shieldnet as sn

EXAMPLE = Path(__file__).parents[2] / "examples" / "node"

pytestmark = pytest.mark.skipif(
    which("node") is None or not (EXAMPLE / "node_modules" / "onnxruntime-node").is_dir(),
    reason="needs Node.js, and: npm install --prefix examples/node --ignore-scripts",
)


@pytest.mark.parametrize("preset", ["strict", "balanced", "open"])
def test_node_gives_the_audited_answers(preset, tmp_path) -> None:
    pytest.importorskip("onnxruntime")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = nn.Linear(4, 5).eval(), torch.randn(30, 4)
    shield = sn.harden(model, preset)
    path = tmp_path / "model.onnx"
    sn.export(shield, x[:3], path)
    asked = x.clone()
    asked[7, 2] = torch.nan
    rows = [[None if np.isnan(number) else number for number in row] for row in asked.tolist()]
    done = subprocess.run(
        ["node", str(EXAMPLE / "answer.js"), str(path)],  # noqa: S607 - the one that is installed
        input=json.dumps(rows),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = np.array(json.loads(done.stdout), dtype=float)
    assert np.isnan(answers[7]).all()
    others = np.arange(30) != 7
    wanted = shield(x).numpy()
    assert np.abs(answers[others] - wanted[others]).max() < 1e-5
    assert (answers[others].argmax(1) == model(x).argmax(1).numpy()[others]).all()
