"""A save that is interrupted leaves no file behind, or the next training removes it."""

import os

import pytest

import shieldnet as sn
from shieldnet.training import checkpoint


def begin(mlp, table, folder):
    return sn.finetune(mlp, table, sn.DPSGD(8.0, 1e-3), epochs=2, checkpoint=folder, progress=False)


def test_what_a_killed_process_left_is_removed_and_nothing_else(mlp, table, tmp_path) -> None:
    stale = ("finetune.pt.14871", "finetune.run.7", "finetune.key.7", "start.safetensors.7")
    theirs = ("finetune.pt.old", "finetune.pt.1.txt", "my.finetune.pt.3", "model.pt.12")
    for name in (*stale, *theirs):
        (tmp_path / name).write_bytes(b"x")
    begin(mlp, table, tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    names = {"finetune.pt", "finetune.run", "finetune.key", "finetune.lock", "start.safetensors"}
    assert kept == {*theirs, *names}
    assert begin(mlp, table, tmp_path).taken == 0


def test_a_folder_that_another_process_has_keeps_its_files(tmp_path) -> None:
    pytest.importorskip("fcntl")
    with checkpoint.only_here(tmp_path):
        (tmp_path / "finetune.pt.14871").write_bytes(b"half")
        again = checkpoint.only_here(tmp_path)
        with pytest.raises(sn.errors.TrainingFailed, match="Another process"), again:
            pass
        assert (tmp_path / "finetune.pt.14871").exists()


def test_ctrl_c_inside_of_a_save_leaves_no_file(mlp, table, tmp_path, monkeypatch) -> None:
    calls = []

    def stopped(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 4:  # of the start, the key, the run, and then the state
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stopped)
        with pytest.raises(KeyboardInterrupt):
            begin(mlp, table, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "finetune.run",
        "finetune.key",
        "finetune.lock",
        "start.safetensors",
    }
    assert (tmp_path / "finetune.key").stat().st_mode & 0o077 == 0
    assert begin(mlp, table, tmp_path).steps
