"""The tutorials run as they are written: their blocks, in order, in an empty folder."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from shell import shieldnet

import shieldnet as sn

DOCS = Path(__file__).parent.parent / "docs"
NAMED = re.compile(r"^# (\S+\.(?:py|toml))\n")


def blocks(page: str) -> list[tuple[str, str]]:
    found = re.findall(r"```(\w+)\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
    assert found
    return found


def write_named(folder: Path, text: str) -> bool:
    """Writes a block that begins with a file's name into that file."""
    name = NAMED.match(text)
    if name:
        (folder / name[1]).write_text(text)
    return bool(name)


def commands(text: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    return [line.split() for line in lines if line.strip()]


def test_a_hugging_face_classifier_is_hardened_and_served(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    program = "\n".join(
        text for kind, text in blocks("tutorial_hugging_face.md") if kind == "python"
    )
    exec(compile(program, "tutorial", "exec"), {"__name__": "tutorial"})  # noqa: S102 - our page
    told = capsys.readouterr().out
    assert "Certificate for BertForSequenceClassification" in told
    assert "shield.base_model is blocked" in told
    assert "pass  shield: inversion" in told
    assert "re-identified" in told
    assert told.strip().endswith("}]")
    assert sn.load_shield(torch.nn.Linear(2, 2), "shield.toml").extent == sn.Extent(classes=2)


def test_a_pipeline_is_checked_from_the_shell_to_the_page(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    typed: list[list[str]] = []
    names = {"__name__": "tutorial"}
    for kind, text in blocks("tutorial_pipeline.md"):
        if write_named(tmp_path, text):
            continue
        if kind == "python":
            exec(compile(text, "tutorial", "exec"), names)  # noqa: S102 - our page
        for command in commands(text) if kind == "bash" else ():
            assert command[0] == "shieldnet"
            typed.append(command)
            done = shieldnet(tmp_path, *command[1:])
            fails = command[1] == "report"  # the page says so, and fixes it
            assert done.returncode == (1 if fails else 0), done.stderr
            assert not fails or re.findall(r"fail: balanced: (\S+)", done.stderr) == [
                "attribute.sex.gain"
            ]
            assert not fails or "inconclusive" not in done.stderr
        if kind == "yaml":  # CI types the same
            steps = " ".join(text.split())
            assert all(" ".join(step) in steps for step in (typed[0], typed[-1]))
    report = sn.Report.load("report.json")
    assert [subject.name for subject in report.subjects] == ["bare", "balanced"]
    assert report["balanced"]["attribute.sex.gain"].high == 0
    assert "membership.tpr_at_fpr_1e-2" in {finding.name for finding in report.findings}
    assert (tmp_path / "audit.xml").exists()
    wages = sn.Report.load("wages.json")
    assert wages["balanced"]["r2"].low > 0.7
    assert wages["balanced"]["attribute.sex.gain"].value == 0
    told = capsys.readouterr().out
    assert told.startswith("['low'] [[")
    assert "Estimator(Pipeline) -> ClipRange(" in told
    assert wages["balanced"].certificate.shield.partition(" -> ")[2] in told
    for name in ("people", "wages"):
        sys.modules.pop(name, None)


def killed_once_saved(start: list[str], folder: Path, environment: dict[str, str]) -> None:
    first = subprocess.Popen(start, cwd=folder, env=environment)
    saved = folder / "checkpoint" / "finetune.pt"
    deadline = time.monotonic() + 120
    while not saved.exists() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert saved.exists()


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_a_private_training_is_stopped_and_resumed_and_repeated_from_the_shell(tmp_path) -> None:
    page = blocks("tutorial_private.md")
    named = [write_named(tmp_path, text) for _, text in page]
    assert sum(named) == 4
    steps = [command for kind, text in page if kind == "bash" for command in commands(text)]
    train, *rest = [[sys.executable, *step[1:]] if step[0] == "python" else step for step in steps]
    environment = {**os.environ, "PYTHONPATH": str(DOCS.parent), "OMP_NUM_THREADS": "1"}
    killed_once_saved(train, tmp_path, environment)
    again = subprocess.run(
        train, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "epsilon 8.00 at delta 0.0001" in again.stdout
    assert re.search(r"Validation: accuracy .* before, .* after; loss", again.stdout)
    assert re.search(r"Verdict:\n +pass .*max_epsilon = 8", again.stdout)
    later = [sys.executable, "later.py"]
    loaded = subprocess.run(
        later, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert re.search("pass .*max_epsilon = 8", loaded.stdout), loaded.stderr
    subprocess.run(rest[0], cwd=tmp_path, env=environment, check=True)
    for step in rest[1:]:
        assert step[0] == "shieldnet"
        done = shieldnet(tmp_path, *step[1:])
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoint_sh" / "finetune.pt").exists()
    assert "max_epsilon = 8" in done.stdout
    assert (tmp_path / "report_sh.html").exists()


def test_a_language_model_that_recites_is_held_back_and_one_trained_with_care_passes(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    parts = [text for kind, text in blocks("tutorial_language_model.md") if kind == "python"]
    program = "\n".join(text for text in parts if not write_named(tmp_path, text))
    names = {"__name__": "tutorial"}
    try:
        exec(compile(program, "tutorial", "exec"), names)  # noqa: S102 - our page
    finally:
        sys.modules.pop("notes", None)
    recites, careful = (names[name]["bare"]["extraction.verbatim"] for name in ("report", "again"))
    assert recites.low > 0.3 > 0.1 > careful.high
    told = capsys.readouterr().out
    assert "fail: balanced: membership.sequences.auc" in told
    assert "texts completed verbatim" in told
