"""A fine-tuned language model beside its base, from the shell."""

from pathlib import Path

import numpy as np
import pytest
import torch
from language import LENGTH, Writer, fitted, texts
from safetensors.torch import save_file
from shell import shieldnet

MODULE = "from language import Writer as writer\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "writing.py").write_text(MODULE)
    torch.manual_seed(0)
    base = fitted(Writer(), texts(200, seed=1), 40)
    sets = {"members": texts(60, seed=2), "nonmembers": texts(60, seed=3)}
    save_file(base.state_dict(), folder / "base.safetensors")
    save_file(fitted(base, sets["members"], 150).state_dict(), folder / "tuned.safetensors")
    for name, tokens in sets.items():
        tokens[:, LENGTH - 2 :] = 0
        np.savez(folder / f"{name}.npz", input_ids=tokens.numpy())
    return folder


ASKED = ("audit", "writing:writer", "--weights=tuned.safetensors", "--axis=-1", "--tier=quick")
SETS = ("--members=members.npz", "--nonmembers=nonmembers.npz", "--shadows=0")


def test_texts_are_audited_beside_their_base(folder) -> None:
    base = ("--base=writing:writer", "--base-weights=base.safetensors", "--padding=0")
    found = shieldnet(folder, *ASKED, *SETS, *base, "-o", "report.json")
    assert found.returncode == 0, found.stderr
    report = (folder / "report.json").read_text()
    assert "membership.sequences.ratio to base.auc" in report


def test_weights_of_no_base_are_refused(folder) -> None:
    found = shieldnet(folder, *ASKED, *SETS, "--base-weights=base.safetensors")
    assert found.returncode == 2
    assert "Expected --base beside --base-weights" in found.stderr
