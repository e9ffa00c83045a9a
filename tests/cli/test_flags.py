"""What the shell says names flags; what Python says names arguments."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from shell import shieldnet
from torch import nn

import shieldnet as sn

MODULE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Linear(6, 3)

class Embedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x):
        return nn.functional.normalize(self.layer(x), dim=-1)

class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return {"topic": self.layer(x), "intent": self.layer(x) * 2}
"""
ARGUMENT = re.compile(r"\b(?!min_|max_)[a-z]\w*=")
"""How Python says a setting."""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("flags")
    (folder / "heads.py").write_text(MODULE)
    rng = np.random.default_rng(0)
    for name in ("members", "nonmembers", "auxiliary"):
        inputs, labels = rng.normal(size=(120, 6)), rng.integers(0, 3, 120)
        np.savez(folder / f"{name}.npz", x=inputs, y=labels)
        np.save(folder / f"{name}.npy", inputs)
    return folder


def audit(project: Path, *extra: str, model: str = "heads:model", ending: str = "npz"):
    sets = [f"--{name}={name}.{ending}" for name in ("members", "nonmembers")]
    return shieldnet(project, "audit", model, *sets, "--tier=quick", "--shadows=4", *extra)


@pytest.mark.parametrize(
    ("extra", "ending", "said"),
    [
        (
            (),
            "npz",
            (
                "it needs auxiliary data: pass --auxiliary",
                "the weaker form: pass --train",
                "it tests the guarantee of a private training, and none was given (--guarantee)",
                "name the columns: --sensitive",
            ),
        ),
        (("--auxiliary=auxiliary.npy",), "npy", ("pass --nonmembers with labels (--label",)),
    ],
)
def test_what_the_shell_did_not_test_is_said_in_flags(project, extra, ending, said) -> None:
    files = ("page.html", "report.md", "report.json")
    result = audit(project, *extra, *(f"-o{file}" for file in files), ending=ending)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("not tested: ")]
    lines += json.loads((project / "report.json").read_text())["reports"][0]["untested"]
    lines += re.findall(r"\*\*Not tested\*\*.*", (project / "report.md").read_text())
    assert not [line for line in lines if ARGUMENT.search(line)]
    for words in said:
        assert words in result.stdout
        assert all(words.split(" (")[0] in (project / file).read_text() for file in files)


def test_what_python_did_not_test_is_said_in_arguments() -> None:
    data = torch.randn(240, 6), torch.randint(3, (240,))
    members, nonmembers = ([part[rows] for part in data] for rows in (slice(120), slice(120, 240)))
    report = sn.audit(
        sn.harden(nn.Linear(6, 3)), members=members, nonmembers=nonmembers, tier="quick", shadows=4
    )
    lines = " ".join(report.notes())
    assert "pass auxiliary=..." in lines
    assert "--" not in lines


@pytest.mark.parametrize(
    ("extra", "model", "words"),
    [
        (
            (),
            "heads:Embedder",
            "outputs='embeddings'), or pass --outputs logits if they are class scores. With public "
            "rows, sn.harden(model, outputs='embeddings', calibrate=public_rows) measures what it "
            "needs. From the shell: --outputs embeddings --calibrate FILE, or let MODEL be "
            "package.module:function, which returns the Shield.",
        ),
        ((), "heads:TwoHeads", "From the shell: let MODEL be package.module:function, which"),
        (("--outputs=embeddings",), "heads:Embedder", 'for --shield: version = 1, outputs = "emb'),
        (("--outputs=values",), "heads:Embedder", "give --calibrate public.npz (or a .csv). Or"),
        (("--calibrate=members.npz",), "heads:Embedder", "the presets of classes need no range"),
        (
            ("--outputs=embeddings", "--calibrate=nowhere.npz"),
            "heads:Embedder",
            "Cannot read the public rows from nowhere.npz: no such file",
        ),
        (("--nonmembers=members.npz",), "heads:model", "out of both with --duplicates drop, or"),
    ],
)
def test_a_refusal_in_the_shell_says_what_works_there(project, extra, model, words) -> None:
    result = audit(project, *extra, model=model)
    assert result.returncode == 2
    assert words in result.stderr.replace("\n", " ")
