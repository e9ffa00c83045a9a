import json
from dataclasses import replace
from xml.etree import ElementTree

import junitparser
import pytest
from by_hand import finding, made, subject
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as Sarif

import shieldnet as sn
from shieldnet.reports.judged import unique_names
from shieldnet.reports.report import save

POLICY = sn.Policy({"max_leakage": 0.1, "max_membership_auc": 0.55, "min_accuracy": 0.99})


@pytest.fixture
def suites(report, tmp_path) -> list[junitparser.TestSuite]:
    report.save(tmp_path / "audit.xml", POLICY)
    return list(junitparser.JUnitXml.fromfile(str(tmp_path / "audit.xml")))


def test_junit_has_a_suite_for_each_shield_that_is_judged(suites) -> None:
    assert [suite.name for suite in suites] == ["Digits: balanced"]
    only = made(subject("bare", 0.6, float("inf")))
    assert [one.name for one in only.released] == ["bare"]


def test_a_broken_limit_is_a_failure_and_one_that_cannot_be_told_an_error(suites) -> None:
    suite = suites[0]
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (4, 1, 1, 1)
    found = {case.name: case.result for case in suite}
    broken = found["min_accuracy: accuracy"][0]
    assert isinstance(broken, junitparser.Failure)
    assert "min_accuracy = 0.99" in broken.message
    assert isinstance(found["max_membership_auc: membership.auc"][0], junitparser.Error)
    assert found["max_leakage: inversion"] == []
    assert isinstance(found["not tested: timing and other side channels"][0], junitparser.Skipped)


def test_a_test_keeps_its_name_whatever_is_measured(tmp_path) -> None:
    """A name with a number in it is a new test at every run, and no history shows it breaking."""
    names = []
    for leak, rows in ((0.03, 448), (0.31, 1447)):
        line = f"membership.tpr_at_fpr_1e-3: needs 3000 nonmembers, there are {rows}"
        dropped = f"{rows} records that stand in two sets were taken out"
        one = made(subject("balanced", leak, 5.0 + leak, untested=(line, dropped)))
        one.save(
            tmp_path / "audit.xml", replace(POLICY, limits={**POLICY.limits, "max_epsilon": 8})
        )
        (suite,) = junitparser.JUnitXml.fromfile(str(tmp_path / "audit.xml"))
        names.append([case.name for case in suite])
    assert names[0] == names[1]
    assert "max_epsilon: guarantee" in names[0]
    assert "not tested: membership.tpr_at_fpr_1e-3" in names[0]


def test_every_test_has_a_name_of_its_own(tmp_path) -> None:
    """A group of its own beside the limit of every group; groups whose values are numbers."""
    lines = [f"the group site = {site}: it has 3 members, 20 are needed" for site in (1, 2)]
    auc = finding("membership.group.site = 1.auc", 0.4, 0.6)
    shield = subject("balanced", 0.0, 3.0, untested=tuple(lines), findings=(auc,))
    one = made(shield, groups=("site = 1", "site = 2"))
    limits = {"max_membership_auc": 0.55}
    policy = sn.Policy({}, groups={"*": limits, "site = 1": {"max_membership_auc": 0.5}})
    one.save(tmp_path / "audit.xml", policy)
    one.save(tmp_path / "audit.sarif", policy)
    (suite,) = junitparser.JUnitXml.fromfile(str(tmp_path / "audit.xml"))
    names = [case.name for case in suite]
    assert len(set(names)) == len(names)
    assert "max_membership_auc: membership.group.site = 1.auc (2)" in names
    assert "not tested: the group site = 2" in names
    (run,) = json.loads((tmp_path / "audit.sarif").read_text())["runs"]
    marks = [one["partialFingerprints"]["shieldnet/v1"] for one in run["results"]]
    assert len(set(marks)) == len(marks) == 3


def test_names_that_no_xml_can_hold_are_written_all_the_same(tmp_path) -> None:
    nasty = made(subject("a\x00<b>&\ud800", 0.0, 3.0), title="\x0b]]>")
    nasty = replace(nasty, subjects=tuple(replace(one) for one in nasty.subjects))
    nasty_file = tmp_path / "audit.xml"
    nasty.save(nasty_file, "default")
    root = ElementTree.parse(nasty_file).getroot()  # noqa: S314  # our own file
    assert root[0].get("name") == "\ufffd]]>: a\ufffd<b>&\ufffd"


class TestSarif:
    @pytest.fixture
    def log(self, report, tmp_path) -> dict:
        report.save(tmp_path / "audit.sarif", POLICY)
        return json.loads((tmp_path / "audit.sarif").read_text())

    def test_it_is_valid(self, log) -> None:
        """The model is generated from the official schema of SARIF 2.1.0."""
        Sarif.model_validate(log)
        assert log["version"] == "2.1.0"

    def test_every_judgment_is_a_result_with_its_level(self, log) -> None:
        run = log["runs"][0]
        found = {one["ruleId"]: (one["kind"], one["level"]) for one in run["results"]}
        assert found == {
            "max_leakage": ("pass", "none"),
            "max_membership_auc": ("fail", "warning"),
            "min_accuracy": ("fail", "error"),
        }
        rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
        assert all(rules[one["ruleIndex"]] == one["ruleId"] for one in run["results"])
        assert run["properties"]["untested"] == ["timing and other side channels"]

    def test_a_result_points_to_the_policys_file(self, report, log, tmp_path) -> None:
        def uris(log: dict) -> set[str]:
            return {
                one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
                for one in log["runs"][0]["results"]
            }

        assert uris(log) == {"policy.toml"}
        (tmp_path / "gate.toml").write_text("max_leakage = 0.1")
        report.save(tmp_path / "again.sarif", tmp_path / "gate.toml")
        assert uris(json.loads((tmp_path / "again.sarif").read_text())) == {
            (tmp_path / "gate.toml").as_posix()
        }

    def test_a_result_points_to_the_line_of_its_limit(self, report, tmp_path) -> None:
        lines = ["version = 1", "", "max_leakage = 0.1", "max_membership_auc = 0.55"]
        lines += ['[groups."*"]', "min_accuracy = 0.5"]
        (tmp_path / "own.toml").write_text("\n".join(lines))
        report.save(tmp_path / "own.sarif", tmp_path / "own.toml")
        run = json.loads((tmp_path / "own.sarif").read_text())["runs"][0]
        found = {
            result["ruleId"]: result["locations"][0]["physicalLocation"]["region"]["startLine"]
            for result in run["results"]
        }
        assert found == {"max_leakage": 3, "max_membership_auc": 4, "min_accuracy": 6}
        for rule in run["tool"]["driver"]["rules"]:
            assert rule["shortDescription"]["text"].endswith(" the limit.")
            assert "docs/gate.md" in rule["help"]["text"]
        helped = {rule["id"]: rule["help"]["text"] for rule in run["tool"]["driver"]["rules"]}
        assert "Release less per answer" in helped["max_leakage"]

    def test_the_same_result_keeps_its_fingerprint_when_numbers_move(self, tmp_path) -> None:
        marks = []
        for leak in (0.3, 0.4):
            made(subject("strict", leak, 3.3)).save(tmp_path / "audit.sarif", "default")
            log = json.loads((tmp_path / "audit.sarif").read_text())
            marks.append(
                {one["partialFingerprints"]["shieldnet/v1"] for one in log["runs"][0]["results"]}
            )
        assert marks[0] == marks[1]

    def test_a_crossed_proof_has_a_rule_of_its_own(self, tmp_path) -> None:
        wrong = replace(
            subject("strict", 0.0, 3.3),
            findings=(finding("reidentification", 0.3, 0.4, ceiling=0.2),),
        )
        made(wrong).save(tmp_path / "audit.sarif", sn.Policy({"max_bits_per_answer": 9}))
        log = json.loads((tmp_path / "audit.sarif").read_text())
        assert {"proof", "max_bits_per_answer"} == {
            rule["id"] for rule in log["runs"][0]["tool"]["driver"]["rules"]
        }


def test_names_are_told_apart_whatever_they_are(tmp_path) -> None:
    assert unique_names(["a", "a", "a (2)", "\x01", "\x02"]) == [
        "a",
        "a (2)",
        "a (2) (2)",
        "\ufffd",
        "\ufffd (2)",
    ]
    reports = [made(subject("balanced", 0.0, 3.0), title=title) for title in ("one", "two")]
    save(reports, tmp_path / "audit.xml", POLICY)
    suites = junitparser.JUnitXml.fromfile(str(tmp_path / "audit.xml"))
    names = [(case.classname, case.name) for suite in suites for case in suite]
    assert len(set(names)) == len(names)


def test_the_order_of_a_policy_s_groups_renames_no_test(tmp_path) -> None:
    auc = finding("membership.group.site = 1.auc", 0.4, 0.6)
    one = made(subject("balanced", 0.0, 3.0, findings=(auc,)), groups=("site = 1",))
    groups = {"*": {"max_membership_auc": 0.55}, "site = 1": {"max_membership_auc": 0.5}}
    marks = []
    for order in (groups, dict(reversed(groups.items()))):
        one.save(tmp_path / "audit.sarif", sn.Policy({}, groups=order))
        (run,) = json.loads((tmp_path / "audit.sarif").read_text())["runs"]
        marks.append([(r["partialFingerprints"], r["message"]) for r in run["results"]])
    assert marks[0] == marks[1]
