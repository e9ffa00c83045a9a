"""What a training says while it runs and afterwards, from Python as from the shell."""

import logging
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.training import loop
from shieldnet.training.watching import Watch

PRIVATE = sn.DPSGD(8.0, 1e-3)


def stop_at(monkeypatch, step: int) -> None:
    """Raises Ctrl+C in the middle of a step."""
    follow = loop._Weights.follow
    taken = []

    def stopped(self, *given) -> None:
        taken.append(1)
        if len(taken) == step:
            raise KeyboardInterrupt
        follow(self, *given)

    monkeypatch.setattr(loop._Weights, "follow", stopped)


@pytest.fixture
def unlogged():
    """A program that set no logging up; pytest and the shell do."""
    log = logging.getLogger("shieldnet")
    level = log.level
    log.setLevel(logging.WARNING)
    yield
    log.setLevel(level)


def test_a_stop_is_said_with_the_step_that_the_same_command_resumes_from(
    table, mlp, tmp_path, capsys, monkeypatch, unlogged
) -> None:
    settings = {"epochs": 40, "checkpoint": tmp_path / "kept", "checkpoint_every_s": 1e-9}
    with monkeypatch.context() as patch:
        stop_at(patch, 32)
        with pytest.raises(KeyboardInterrupt):
            sn.finetune(mlp, table, PRIVATE, **settings)
    told = capsys.readouterr().err
    assert told.count("first checkpoint saved at step 1 of 40, in ") == 1
    assert "Stopped at step 31 of 40; the same command resumes from step 31, saved in" in told
    found = sn.finetune(mlp, table, PRIVATE, **settings)
    told = capsys.readouterr().err
    assert f"continuing from step 31 of 40, saved in {tmp_path / 'kept'}" in told
    assert (found.steps, found.taken) == (40, 9)
    assert "40 steps, 9 of them in this run, in " in str(found)
    assert f"Checkpoint: {tmp_path / 'kept'}" in str(found)
    assert "first checkpoint" not in told
    complete = sn.finetune(mlp, table, PRIVATE, **settings)
    assert "already complete: all 40 steps are taken from" in capsys.readouterr().err
    assert "40 steps, none of them in this run" in str(complete)


def test_a_stop_while_the_first_checkpoint_is_told_resumes_from_it(
    table, mlp, tmp_path, capsys, monkeypatch, unlogged
) -> None:
    told = Watch.tell

    def stopped(self: Watch, line: str) -> None:
        told(self, line)
        if line.startswith("first checkpoint"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "tell", stopped)
    settings = {"epochs": 40, "checkpoint": tmp_path / "kept", "checkpoint_every_s": 1e-9}
    with pytest.raises(KeyboardInterrupt):
        sn.finetune(mlp, table, PRIVATE, **settings)
    said = capsys.readouterr().err
    assert "Stopped at step 1 of 40; the same command resumes from step 1, saved in" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "Stopped at step 2 of 5; without a checkpoint folder, nothing was kept."),
        ({"checkpoint": "kept"}, "Stopped at step 2 of 5, before the first checkpoint; the same"),
    ],
)
def test_a_stop_without_a_checkpoint_says_so(
    settings, words, table, mlp, tmp_path, capsys, monkeypatch, unlogged
) -> None:
    monkeypatch.chdir(tmp_path)
    stop_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        sn.finetune(mlp, table, PRIVATE, epochs=5, **settings)
    assert words in capsys.readouterr().err


def test_lines_go_to_the_log_where_one_is_set_up(table, mlp, caplog, capsys, monkeypatch) -> None:
    # A handler that an imported package set up on a stream that is closed by now complains there.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with caplog.at_level(logging.INFO, logger="shieldnet"):
        sn.finetune(mlp, table, sn.DPSGD(7.77, 1e-3), epochs=3)
    assert "building noise tables (once per process and setting)" in caplog.messages
    assert "noise tables" not in capsys.readouterr().err


def test_without_progress_nothing_is_said(table, mlp, tmp_path, capsys, unlogged) -> None:
    for _ in range(2):
        sn.finetune(mlp, table, PRIVATE, epochs=3, checkpoint=tmp_path, progress=False)
    assert capsys.readouterr().err == ""


def test_noise_tables_are_announced_once_per_setting(table, mlp, capsys, unlogged) -> None:
    for _ in range(2):
        sn.finetune(mlp, table, sn.DPSGD(6.66, 1e-3), epochs=3)
    assert capsys.readouterr().err.count("building noise tables") == 1


def test_a_bar_starts_at_the_step_that_is_continued() -> None:
    from shieldnet.training.watching import Watch

    watch = Watch(None, 40, None, shown=False, is_first=True)
    watch.begin(31)
    assert (watch.bar.n, watch.bar.initial) == (31, 31)


def test_first_come_epsilon_accuracy_and_what_was_measured(table, mlp) -> None:
    held = torch.randn(60, 12, generator=torch.Generator().manual_seed(5))
    found = sn.finetune(
        mlp,
        table,
        sn.DPSGD(8.0, 1e-3, canaries=30, max_grad_norm=sn.AdaptiveClip(start=3.0)),
        epochs=5,
        start="public",
        validation=(held, held[:, :3].argmax(1)),
    )
    proven, validated, measured, assuming, empty, *details = str(found).splitlines()
    assert proven == "Proven: epsilon 8.00 at delta 0.001"
    assert re.fullmatch(
        r"Validation: accuracy \S+ \[.*\] before, \S+ \[.*\] after; loss \S+ before, \S+ after "
        r"\(60 records\)",
        validated,
    )
    assert re.fullmatch(
        r"Measured in the run itself: epsilon at least \S+ \(\d+ of \d+ guesses right\), "
        r"mu at least \S+ \(\d+ of \d+ guesses right\) \(95%, 30 canaries\)",
        measured,
    )
    assert re.fullmatch(
        r"If its canaries are independent: mu at least \S+; if the noise is Gaussian too: "
        r"epsilon at least \S+ \(99.9%, \d+ of 30 guesses right\)",
        assuming,
    )
    assert empty == ""
    assert f"Clip norm after the last step: {found.clip:.3g}" in details
    assert found.clip != 3.0
    assert "Assumptions:" in details


def test_a_result_is_saved_as_the_shell_saves_it(table, mlp, tmp_path) -> None:
    found = sn.finetune(mlp, table, PRIVATE, epochs=1, start="public")
    folder = found.save(tmp_path / "private")
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "guarantee.json"}
    written = (folder / "model.safetensors").read_bytes()
    assert found.save(folder) == folder  # the same model
    assert (folder / "model.safetensors").read_bytes() == written
    claimed = sn.load_guarantee(folder / "guarantee.json")
    assert claimed.run == found.guarantee.run
    other = sn.finetune(mlp, table, PRIVATE, epochs=1, start="public")
    with pytest.raises(
        sn.errors.ConfigError, match="already exists.*Nothing is lost.*force=True writes over"
    ):
        other.save(folder)
    for damaged in ("[]", "no json", '"text"'):
        (folder / "guarantee.json").write_text(damaged)
        with pytest.raises(sn.errors.ConfigError, match="already exists"):
            found.save(folder)
    plain = sn.finetune(mlp, table, epochs=1)
    plain.save(folder, force=True)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors"}
    from shieldnet.files.weights import load_weights

    load_weights(again := nn.Sequential(*mlp), folder / "model.safetensors", "mlp")
    assert torch.equal(again[0].weight, plain.model[0].weight)


def test_the_epsilon_so_far_is_shown_rounded_up(caplog) -> None:
    from shieldnet.training.watching import Watch

    claimed = sn.Guarantee(4.0, 1.0, 40, 100, 1e-5)
    watch = Watch(claimed, 40, None, shown=None, is_first=True)
    with caplog.at_level("INFO", logger="shieldnet"):
        watch.begin(0)
        for step in (4, 8, 12, 16):
            watch.took(step)
    shown = [float(line.split()[-3]) for line in caplog.messages if "so far" in line]
    spent = [replace(claimed, steps=step).epsilon for step in (4, 8, 12, 16)]
    assert all(least <= found < least + 0.001 for found, least in zip(shown, spent, strict=True))
    assert any(round(least, 3) < least for least in spent)  # where it would be rounded down
