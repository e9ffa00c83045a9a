"""A fine-tuned language model beside its base, from the shell."""

from pathlib import Path

import numpy as np
import pytest
import torch
from language import LENGTH, VOCABULARY, Writer, fitted, texts
from safetensors.torch import save_file
from shell import shieldnet

import shieldnet as sn
from shieldnet.privacy.cost import rounded_up

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


def test_the_last_position_alone_is_hardened_and_audited(folder) -> None:
    last = ("--axis=-1", "--release-positions=last")
    asked = ("harden", "writing:writer", "--weights=tuned.safetensors", *last)
    hardened = shieldnet(folder, *asked, f"--classes={VOCABULARY}", "-o", "hardened")
    assert hardened.returncode == 0, hardened.stderr
    assert 'release_positions = "last"' in (folder / "hardened" / "shield.toml").read_text()
    cost = sn.harden(torch.nn.Linear(2, VOCABULARY)).cost(VOCABULARY)  # of one position
    assert f"bits {rounded_up(cost.bits)}" in hardened.stdout

    found = shieldnet(folder, *ASKED, *SETS, last[1], "--padding=0", "-o", "last.json")
    assert found.returncode == 0, found.stderr
    subject = sn.Report.load(folder / "last.json")["balanced"]
    assert "the last position alone" in subject.certificate.shield
    assert subject.certificate.cost.bits == cost.bits


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("--axis=-1", "--release-positions=first"), "Expected --release-positions to be one of"),
        (("--release-positions=last",), "beside --release-positions last"),
        (("--shield=any.toml", "--release-positions=last"), "--release-positions out"),
    ],
)
def test_positions_that_make_no_sense_are_refused(folder, extra, words) -> None:
    found = shieldnet(folder, "harden", "writing:writer", *extra, "-o", "none")
    assert found.returncode == 2
    assert words in found.stderr


def test_weights_of_no_base_are_refused(folder) -> None:
    found = shieldnet(folder, *ASKED, *SETS, "--base-weights=base.safetensors")
    assert found.returncode == 2
    assert "Expected --base beside --base-weights" in found.stderr
