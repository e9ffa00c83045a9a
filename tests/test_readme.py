"""What is shown works: README blocks, examples and the contract of the CI script."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import shieldnet as sn

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_every_python_block_runs_in_order(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("toml"):
        (tmp_path / re.match(r"# (\S+)", block).group(1)).write_text(block)
    program = "\n".join(blocks("python"))
    exec(compile(program, "README.md", "exec"), {"__name__": "readme"})  # noqa: S102 - our README
    assert (tmp_path / "report.html").exists()
    assert "Certificate for Sequential" in capsys.readouterr().out


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 220


def test_every_public_name_of_the_readme_exists() -> None:
    assert set(re.findall(r"\bsn\.(\w+)", README)) <= set(sn.__all__)


def test_ci_calls_the_readmes_test_command() -> None:
    command = re.search(r"<!-- the test command -->\n```bash\n(.*?)\n```", README).group(1)
    found = subprocess.run(
        ["sed", "-n", "/<!-- the test command -->/,/^```$/p", "README.md"],  # noqa: S607 - as CI does
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [line for line in found.splitlines() if line.startswith("python3")] == [command]
    assert "/^```$/p' README.md" in (ROOT / ".ci" / "run").read_text()


def test_the_examples_run(capsys) -> None:
    runpy.run_path(str(ROOT / "examples" / "serve.py"))
    assert "Confidence(bins=4)" in capsys.readouterr().out
    sn.Policy.load(ROOT / "examples" / "policy.toml")


def test_the_examples_audit_passes_its_policy(tmp_path) -> None:
    parts = [f"--{name}=examples.digits:{name}" for name in ("members", "nonmembers", "auxiliary")]
    result = subprocess.run(
        [
            *(sys.executable, "-m", "shieldnet", "audit", "examples.digits:model", *parts),
            "--policy=examples/policy.toml",
            *("-o", str(tmp_path / "report.html"), "-o", str(tmp_path / "audit.sarif")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("page", ["README", "SECURITY", "CONTRIBUTING", "CHANGELOG"])
def test_links_between_pages_lead_somewhere(page) -> None:
    text = (ROOT / f"{page}.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), target
