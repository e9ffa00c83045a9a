"""The gate from the shell: what a pipeline sees."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from by_hand import SAVED
from shell import shieldnet

POLICIES = {
    "pass": "max_leakage = 0.2\nmin_accuracy = 0.9\n",
    "fail": "min_accuracy = 0.999\n",
    "unsure": "max_leakage = 0.05\n",
    "required": 'required = ["membership.canaries.auc"]\n',
    "groups": '[groups."*"]\nmin_accuracy = 0.5\n',
    "typo": "max_leek = 0.1\n",
}


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "report.json").write_bytes(SAVED.read_bytes())
    for name, text in POLICIES.items():
        (tmp_path / f"{name}.toml").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("policy", "code", "words"),
    [
        ("pass", 0, ""),
        ("fail", 1, "noisy: accuracy 0.970 [0.936, 0.989], min_accuracy = 0.999"),
        ("unsure", 3, "noisy: inversion 0.038 [0.008, 0.069], max_leakage = 0.05"),
        ("required", 1, "membership.canaries.auc was not measured; it is required"),
        ("groups", 1, "no subgroup was given; min_accuracy = 0.5 applies to every subgroup"),
        ("typo", 2, "A policy has no limit max_leek"),
        ("nowhere", 2, "Cannot read nowhere.toml"),
    ],
)
def test_a_saved_report_is_judged_and_the_exit_code_says_how(project, policy, code, words) -> None:
    result = shieldnet(project, "report", "report.json", f"--policy={policy}.toml")
    assert result.returncode == code, result.stderr
    assert words in result.stderr.replace("\n", "")
    assert "Traceback" not in result.stderr


def test_every_form_is_written_before_the_gate_closes(project) -> None:
    names = ("audit.html", "audit.xml", "audit.sarif", "audit.md", "again.json", "README.md")
    targets = [part for name in names for part in ("-o", name)]
    result = shieldnet(project, "report", "report.json", "--policy=fail.toml", *targets)
    assert result.returncode == 1
    assert all((project / name).stat().st_size > 500 for name in names)
    assert json.loads((project / "again.json").read_text())["reports"][0]["outcome"] == "fail"


def test_an_option_of_its_own_means_the_same_as_o(project) -> None:
    given = ("--html=a.html", "--junit=a.xml", "--json=a.json", "--sarif=a.sarif")
    result = shieldnet(
        project, "report", "report.json", *given, "--markdown=a.md", "--policy=pass.toml"
    )
    assert result.returncode == 0
    assert {path.suffix for path in project.glob("a.*")} == {
        ".html",
        ".xml",
        ".json",
        ".sarif",
        ".md",
    }


def test_a_run_on_github_gets_a_summary(project) -> None:
    summary = project / "summary"
    summary.write_text("# Before\n")
    result = shieldnet(
        project, "report", "report.json", "--policy=pass.toml", GITHUB_STEP_SUMMARY=str(summary)
    )
    assert result.returncode == 0
    assert summary.read_text().startswith("# Before\n## Audit of Sequential: ✅ passes\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("report", "nowhere.json"), "Cannot read nowhere.json"),
        (("report", "pass.toml"), "is not a JSON report"),
        (("report", "report.json", "-o", "report.pdf"), "ends in .json, .html, .md, .xml, .sarif"),
        (
            ("report", "report.json", "-o", "no/report.md"),
            "there is no folder no. Make it with: mkdir -p no",
        ),
        (("compare", "report.json", "nowhere.json"), "Cannot read nowhere.json"),
        (("compare", "report.json"), "Missing argument"),
        (
            ("policy", "init", "pass.toml"),
            "pass.toml already exists: name another file with -o, or overwrite it with",
        ),
        (("policy", "init", "no/policy.toml"), "There is no folder no. Make it with: mkdir -p no"),
    ],
)
def test_bad_input_exits_with_2_and_one_clear_line(project, arguments, words) -> None:
    result = shieldnet(project, *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_written_policy_judges_at_once(project) -> None:
    assert shieldnet(project, "policy", "init").returncode == 0
    assert "max_leakage = 0.10" in (project / "policy.toml").read_text()
    result = shieldnet(project, "report", "report.json", "--policy=policy.toml")
    assert result.returncode == 3, "membership after two answers cannot be told at .60"
    assert "membership.averaged.2" in result.stderr
    assert shieldnet(project, "policy", "init").returncode == 2
    assert shieldnet(project, "policy", "init", "--force").returncode == 0


def test_a_policy_is_written_where_o_says_and_names_the_default_limits(project) -> None:
    assert shieldnet(project, "policy", "init", "-o", "full.toml").returncode == 0
    text = (project / "full.toml").read_text()
    assert "--policy default sets only max_leakage = 0.10 and max_member" in text
    assert shieldnet(project, "policy", "init", "a.toml", "-o", "b.toml").returncode == 2


def test_a_reader_that_leaves_changes_neither_files_nor_verdict(project) -> None:
    command = [sys.executable, "-m", "shieldnet", "report", "report.json", "--policy=fail.toml"]
    with subprocess.Popen(
        [*command, "-o", "left.html", "-o", "left.xml"],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        running.stdout.close()
        said = running.stderr.read()
    assert running.returncode == 1, said
    assert "PolicyFailed" in said
    assert "BrokenPipe" not in said
    assert (project / "left.html").exists()
    assert (project / "left.xml").exists()


def test_what_is_not_released_is_not_judged_in_the_terminal(project) -> None:
    result = shieldnet(project, "report", "report.json", "--policy=pass.toml")
    assert result.returncode == 0
    table = result.stdout.partition("Judged by")[0]
    assert "not judged" in table
    assert "fail" not in table
    failed = shieldnet(project, "report", "report.json", "--policy=fail.toml")
    assert (
        "what helps: min_accuracy: The model does not meet it without a shield either: improve"
        in failed.stderr
    )


def test_every_report_of_a_file_is_judged(project) -> None:
    """The demo writes two into one file."""
    document = json.loads((project / "report.json").read_text())
    document["reports"] *= 2
    document["reports"][1] = {**document["reports"][1], "title": "The other"}
    (project / "two.json").write_text(json.dumps(document))
    given = ("report", "two.json", "-o", "two.html")
    assert shieldnet(project, *given, "--policy=pass.toml").returncode == 0
    assert (project / "two.html").read_text().count("<section data-report") == 2
    result = shieldnet(project, *given, "--policy=fail.toml")
    assert result.returncode == 1
    assert "The other: noisy: accuracy" in result.stderr


def test_files_are_checked_for_being_policies(project) -> None:
    result = shieldnet(project, "policy", "check", "pass.toml", "groups.toml")
    assert result.returncode == 0
    assert "pass.toml is a policy of 2 limits." in result.stdout
    result = shieldnet(project, "policy", "check", "pass.toml", "typo.toml")
    assert result.returncode == 2
    assert "A policy has no limit max_leek" in result.stderr


class TestCompare:
    def changed(self, project: Path, **moved: float) -> None:
        document = json.loads((project / "report.json").read_text())
        for finding in document["reports"][0]["subjects"][1]["findings"]:
            if finding["name"] in moved:
                for part in ("value", "low", "high"):
                    finding[part] += moved[finding["name"]]
        (project / "next.json").write_text(json.dumps(document))

    def test_the_same_release_is_no_worse(self, project) -> None:
        result = shieldnet(project, "compare", "report.json", "report.json")
        assert result.returncode == 0
        assert "Findings without a significant difference: " in result.stdout

    def test_more_leakage_fails(self, project) -> None:
        self.changed(project, inversion=0.3)
        result = shieldnet(project, "compare", "report.json", "next.json")
        assert result.returncode == 1
        assert "worse  noisy: inversion 0.038 [0.008, 0.069] -> 0.338" in result.stdout

    def test_less_leakage_passes(self, project) -> None:
        self.changed(project, inversion=-0.3)
        result = shieldnet(project, "compare", "report.json", "next.json")
        assert result.returncode == 0
        assert "better  noisy: inversion" in result.stdout

    def test_what_is_not_measured_any_more_is_inconclusive(self, project) -> None:
        document = json.loads((project / "report.json").read_text())
        subject = document["reports"][0]["subjects"][1]
        subject["findings"] = [one for one in subject["findings"] if one["name"] != "inversion"]
        (project / "next.json").write_text(json.dumps(document))
        result = shieldnet(project, "compare", "report.json", "next.json")
        assert result.returncode == 3
        assert "no longer measured" in result.stdout
        assert "Nothing is significantly worse, but 1 finding is no longer measured" in (
            result.stderr.replace("\n", " ")
        )
        assert "inversion" not in result.stderr  # once is enough


def test_without_a_policy_nothing_is_judged_and_nothing_fails(project) -> None:
    result = shieldnet(project, "report", "report.json", "-o", "told.json", "-o", "told.html")
    assert result.returncode == 0, result.stderr
    assert "No policy was given, so nothing is judged" in result.stdout
    report = json.loads((project / "told.json").read_text())["reports"][0]
    assert report["outcome"] == "not judged"
    assert "policy" not in report["hashes"]
    assert all(not subject["verdict"]["judgments"] for subject in report["subjects"])
    page = (project / "told.html").read_text()
    assert "No policy was given, so nothing is judged" in page
    assert "passes" not in page.split("<main>")[1].split("The certificate")[0]


def test_the_default_policy_is_asked_for_by_name_and_printed(project) -> None:
    result = shieldnet(project, "report", "report.json", "--policy=default", "-o", "told.html")
    assert result.returncode in (1, 3), result.stderr
    limits = "default policy: max_leakage = 0.1, max_membership_auc = 0.6"
    assert f"Judged by the {limits}" in result.stdout
    assert "Policy (the default):" in (project / "told.html").read_text()


@pytest.mark.parametrize("ending", ["xml", "sarif"])
def test_a_build_gets_no_file_of_tests_without_a_policy(project, ending) -> None:
    result = shieldnet(project, "report", "report.json", "-o", f"told.{ending}")
    assert result.returncode == 2
    assert "it would pass whatever was measured. Give --policy FILE" in result.stderr
    assert not (project / f"told.{ending}").exists()


@pytest.mark.parametrize(
    "flags", [("--html=b.xml",), ("--html", "b.xml"), ("--junit=b.html",), ("--sarif", "c.md")]
)
def test_a_flag_of_one_format_takes_no_file_of_another(project, flags) -> None:
    result = shieldnet(project, "report", "report.json", "--policy=pass.toml", *flags)
    assert result.returncode == 2
    assert "takes a file that ends in" in result.stderr
    assert not (project / flags[-1].partition("=")[2]).is_file()


@pytest.mark.parametrize("width", ["80", "200"])
def test_no_number_is_cut_off_however_narrow_the_terminal(project, width) -> None:
    result = shieldnet(project, "report", "report.json", "--policy=default", COLUMNS=width)
    table = result.stdout.partition("Judged by")[0]
    assert "…" not in table
    for cell in ("0.166", "0.118–0.208", "0.454–0.618", "inconclusive", "membership AUC"):
        assert cell in table
