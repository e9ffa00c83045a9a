import subprocess
import sys
from pathlib import Path

import pytest
from by_hand import SAVED

TESTS = """
import shieldnet as sn

def test_release(shieldnet_report):
    assert shieldnet_report.passes("lenient.toml")

def test_leakage(shieldnet_report):
    assert shieldnet_report.passes(sn.Policy({"max_leakage": 0.001}))
"""


@pytest.fixture
def users(tmp_path) -> Path:
    (tmp_path / "test_theirs.py").write_text(TESTS)
    (tmp_path / "lenient.toml").write_text("max_leakage = 0.9\n")
    (tmp_path / "report.json").write_bytes(SAVED.read_bytes())
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_a_users_own_test_reads_well_and_says_what_broke(users) -> None:
    said = run(users, "--shieldnet-report=report.json")
    assert "1 failed, 1 passed" in said
    assert "assert <fail: noisy: inversion 0.038 [0.008, 0.069], max_leakage = 0.001" in said
    assert "<Audit of Sequential: bare, noisy>" in said


def test_the_report_can_stand_in_the_settings(users) -> None:
    (users / "pytest.ini").write_text("[pytest]\nshieldnet_report = report.json\n")
    assert "1 failed, 1 passed" in run(users)


def test_without_a_report_it_says_how_to_make_one(users) -> None:
    said = run(users)
    assert "Expected --shieldnet-report=report.json" in said
    assert "shieldnet audit ... -o report.json" in said


def test_the_plugin_costs_a_users_other_tests_nothing(users) -> None:
    (users / "test_theirs.py").write_text(
        "import sys\n\ndef test_it():\n    assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    assert "1 passed" in run(users, "-p", "no:hypothesispytest")
