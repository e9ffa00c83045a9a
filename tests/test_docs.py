"""What the site shows works, and nothing public is left out of it."""

import re
from pathlib import Path

import pytest
import yaml

import shieldnet as sn
from shieldnet.defenses import DEFENSES
from shieldnet.reports import formats
from shieldnet.shield.presets import PRESETS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", ["index.md", "choosing.md", "training.md", "serving.md"])
def test_every_python_block_of_a_page_runs_in_order(page, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = "\n".join(blocks(page, "python"))
    exec(compile(program, page, "exec"), {"__name__": "docs"})  # noqa: S102 - our own page
    assert (tmp_path / "report.html").exists() or "sn.audit(" not in program


def test_the_policy_that_is_shown_is_one(tmp_path) -> None:
    (shown,) = blocks("gate.md", "toml")
    (tmp_path / "policy.toml").write_text(shown)
    policy = sn.Policy.load(tmp_path / "policy.toml")
    assert policy.required
    assert policy.groups


def test_every_form_of_a_report_is_explained() -> None:
    text = (DOCS / "gate.md").read_text()
    assert all(f"`{suffix}`" in text for suffix in formats.FORMATS)


def test_every_defense_and_preset_is_in_the_table_of_choices() -> None:
    text = (DOCS / "choosing.md").read_text()
    assert all(f"`{name}" in text for name in (*DEFENSES, *PRESETS))


def test_the_reference_has_every_public_name() -> None:
    text = (DOCS / "reference.md").read_text()
    listed = set(re.findall(r"^::: shieldnet\.\S+\.(\w+)$", text, re.M))
    namespaces = {"attacks", "checks", "countermeasures", "errors", "metrics"}
    namespaces |= {"serving", "trainable"}
    inside = {*sn.attacks.__all__, *sn.checks.__all__, *sn.countermeasures.__all__}
    inside |= {*sn.trainable.__all__, *sn.serving.__all__}
    errors = {name for name, kind in vars(sn.errors).items() if isinstance(kind, type)}
    public = {*sn.__all__} - namespaces | inside - {"ATTACKS", "CHECKS"} | errors
    results = {"Comparison", "Finetuned", "Verdict"}  # nobody makes one
    assert listed == public | {"Metric", "Limit"} | results


def test_every_page_is_in_the_sites_navigation() -> None:
    named = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(named) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (DOCS / target).exists(), target


def test_the_workflow_is_yaml_and_calls_commands_that_there_are() -> None:
    workflow = yaml.safe_load((ROOT / "examples" / "github" / "release-gate.yml").read_text())
    steps = workflow["jobs"]["audit"]["steps"]
    commands = [step["run"] for step in steps if step.get("run", "").startswith("shieldnet")]
    assert [command.split()[1] for command in commands] == ["audit", "compare"]
    assert "-o audit.sarif" in commands[0]


def test_the_hooks_that_are_shown_are_there() -> None:
    offered = {hook["id"] for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
    step, shown = (yaml.safe_load(one) for one in blocks("gate.md", "yaml"))
    assert "shieldnet audit" in step[1]["run"]
    assert {hook["id"] for hook in shown["repos"][0]["hooks"]} == offered
