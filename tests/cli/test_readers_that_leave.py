"""A reader that leaves, as head does, changes neither the files nor the exit code of a command."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
from by_hand import SAVED

from shieldnet.__main__ import main

MODULE = """
from torch import nn

def model():
    print("made by the user's own code")
    return nn.Linear(6, 3)
"""
COMMANDS = {
    "finetune": (
        "finetune served:model --data rows.npz --validation others.npz --epsilon 8 --delta 1e-3 "
        "--epochs 2 -o made",
        0,
        ("made/model.safetensors", "made/guarantee.json"),
    ),
    "harden": (
        "harden served:model --example rows.npz --preset strict -o hard",
        0,
        ("hard/shield.toml",),
    ),
    "split": ("split rows.npz -o sets", 0, ("sets/members.npz", "sets/auxiliary.npz")),
    "compare": ("compare report.json report.json", 0, ()),
    "report": ("report report.json --policy fail.toml -o a.html -o a.xml", 1, ("a.html", "a.xml")),
    "policy init": ("policy init", 0, ("policy.toml",)),
    "policy check": ("policy check fail.toml fail.toml", 0, ()),
    "keys": ("keys add someone --keys keys.json", 0, ("keys.json",)),
    "an error": ("split nowhere.npz -o sets", 2, ()),
    "version": ("--version", 0, ()),
    "help": ("finetune --help", 0, ()),
}


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "report.json").write_bytes(SAVED.read_bytes())
    (tmp_path / "served.py").write_text(MODULE)
    (tmp_path / "fail.toml").write_text("min_accuracy = 0.999\n")
    rng = np.random.default_rng(0)
    for name in ("rows", "others"):
        inputs = rng.normal(size=(40, 6)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=inputs, y=rng.integers(0, 3, 40))
    return tmp_path


@contextmanager
def nobody() -> Iterator[TextIO]:
    """Opens a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", closefd=False) as pipe:
        yield pipe
    os.close(writer)


@pytest.mark.skipif(os.name != "posix", reason="a pipe of another kind")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_leaves_changes_neither_files_nor_exit_code(
    name, project, monkeypatch, capsys
) -> None:
    command, code, files = COMMANDS[name]
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    monkeypatch.delitem(sys.modules, "served", raising=False)
    log = logging.getLogger("shieldnet")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", log.level)
    monkeypatch.setattr(sys, "argv", ["shieldnet", *command.split()])
    with nobody() as pipe, redirect_stdout(pipe), pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == code, said
    assert "Broken" not in said
    assert "Traceback" not in said
    for file in files:
        assert (project / file).stat().st_size
    sys.modules.pop("served", None)


@pytest.mark.skipif(os.name != "posix", reason="a pipe of another kind")
def test_a_training_ends_where_nobody_reads_its_output_nor_its_errors(project) -> None:
    command, code, files = COMMANDS["finetune"]
    with subprocess.Popen(
        [sys.executable, "-m", "shieldnet", *command.split()],
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as running:
        running.stdout.close()
    assert running.returncode == code
    assert all((project / file).stat().st_size for file in files)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(
    ("arguments", "code"), [("--version", 0), ("policy check nowhere.toml", 2)]
)
def test_a_stream_that_was_closed_before_changes_no_exit_code(closed, arguments, code) -> None:
    command = f"exec {sys.executable} -m shieldnet {arguments} {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, check=False)  # noqa: S602
    assert done.returncode == code
