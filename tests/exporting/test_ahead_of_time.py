"""AOTInductor compiles the exported graph into a package that gives the audited answers."""

import os
import subprocess
import sys
from shutil import which

import pytest
import torch
from torch import nn

import shieldnet as sn

COMPILE = """
import sys, warnings, torch
sys.modules["shieldnet"] = None
warnings.simplefilter("ignore")
folder = sys.argv[1]
program = torch.export.load(folder + "/model.pt2")
program.example_inputs = ((torch.zeros(3, 4),), {})
package = folder + "/compiled.pt2"
torch._inductor.aoti_compile_and_package(program, package_path=package)
answer = torch._inductor.aoti_load_package(package)
asked = torch.load(folder + "/asked.pt")
torch.save([answer(rows) for rows in asked], folder + "/answers.pt")
"""


@pytest.mark.skipif(which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_package_gives_the_audited_answers(tmp_path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = nn.Linear(4, 6).eval(), torch.randn(400, 4)
    shield = sn.harden(model, "open")
    sn.export(shield, x[:3], tmp_path / "model.pt2")
    broken = x[:7].clone()
    broken[2, 1] = torch.nan
    torch.save([x[:0], x[:1], x, broken], tmp_path / "asked.pt")
    subprocess.run(
        [sys.executable, "-c", COMPILE, str(tmp_path)],
        check=True,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
    )
    none, one, many, around = (
        answers if torch.is_tensor(answers) else answers[0]
        for answers in torch.load(tmp_path / "answers.pt")
    )
    assert none.shape == (0, 6)
    assert torch.equal(one, shield(x[:1]))
    assert torch.equal(many, shield(x))
    others = torch.arange(7) != 2
    assert torch.isnan(around[2]).all()
    assert torch.equal(around[others], shield(x[:7])[others])
