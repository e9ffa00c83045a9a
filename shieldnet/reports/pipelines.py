"""Reports for machines: JUnit XML and SARIF, which pipelines show beside their own tests."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from typing import Any
from xml.etree import ElementTree

Document = Mapping[str, Any]

_SARIF = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_LEVELS = {"fail": ("fail", "error"), "inconclusive": ("fail", "warning"), "pass": ("pass", "none")}
_PROOF = "a measured lower bound lies above its own proven upper bound"
# What XML 1.0 cannot hold, even escaped.
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_junit(document: Document) -> str:
    """Writes a test suite for each shield, with a test case for each judgment.

    A limit that fails is a failure, one that cannot be told an error: neither lets a build pass.
    What was not tested is skipped, with the reason. Names hold no measured number: a test is the
    same from run to run.
    """
    root = ElementTree.Element("testsuites", name="shieldnet")
    several = len(document["reports"]) > 1
    for report in document["reports"]:
        for subject in _judged(report):
            path = f"{report['title']}.{subject['name']}" if several else subject["name"]
            root.append(_suite(report, subject, f"shieldnet.{path}"))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def as_sarif(document: Document) -> str:
    """Writes a run with a result for each judgment, placed at the policy.

    Source: SARIF 2.1.0 (OASIS, with errata 01).
    """
    judgments = [
        (report, subject, judgment)
        for report in document["reports"]
        for subject in _judged(report)
        for judgment in subject["verdict"]["judgments"]
    ]
    rules = sorted({judgment["limit"] for _, _, judgment in judgments})
    marks = _told_apart(
        f"{report['title']}/{subject['name']}/{judgment['limit']}/{judgment['finding']}"
        for report, subject, judgment in judgments
    )
    untested = {line for report in document["reports"] for line in report["untested"]}
    run = {
        "tool": {
            "driver": {
                "name": "shieldnet",
                "version": version("shieldnet"),
                "rules": [_rule(name) for name in rules],
            }
        },
        "results": [
            _result(rules, *judged, mark) for judged, mark in zip(judgments, marks, strict=True)
        ],
        "properties": {"untested": sorted(untested)},
    }
    log = {"$schema": _SARIF, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1, allow_nan=False)


def _judged(report: Document) -> Iterator[Document]:
    """Lists the shields that the policy judges: the bare model only where it is alone."""
    subjects: Sequence[Document] = report["subjects"]
    return (part for part in subjects if part["name"] != "bare" or len(subjects) == 1)


def _suite(report: Document, subject: Document, path: str) -> ElementTree.Element:
    judgments, untested = subject["verdict"]["judgments"], subject["untested"]
    outcomes = [judgment["outcome"] for judgment in judgments]
    suite = ElementTree.Element(
        "testsuite",
        name=_writable(f"{report['title']}: {subject['name']}"),
        tests=str(len(judgments) + len(untested)),
        failures=str(outcomes.count("fail")),
        errors=str(outcomes.count("inconclusive")),
        skipped=str(len(untested)),
        time=f"{sum(subject['durations_s'].values()):.2f}",
    )
    names = _told_apart(f"{judgment['limit']}: {judgment['finding']}" for judgment in judgments)
    for judgment, name in zip(judgments, names, strict=True):
        case = _case(suite, path, name)
        if judgment["outcome"] != "pass":
            tag = "failure" if judgment["outcome"] == "fail" else "error"
            message = _writable(judgment["words"])
            ElementTree.SubElement(
                case, tag, type=judgment["limit"], message=message
            ).text = message
    names = _told_apart(
        _without_numbers(f"not tested: {line.partition(': ')[0]}") for line in untested
    )
    for line, name in zip(untested, names, strict=True):
        case = _case(suite, path, name)
        ElementTree.SubElement(case, "skipped", message=_writable(line))
    return suite


def _case(suite: ElementTree.Element, path: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=_writable(path), name=name)


def _without_numbers(name: str) -> str:
    """Keeps a name the same from run to run: counts in it become N, a group's value stays."""
    return re.sub(r"(?<![\w.-])(?<!= )\d[\d,]*(?![\w.-])", "N", name)


def _told_apart(names: Iterable[str]) -> list[str]:
    """Numbers the second and later ones of equal names, in the policy's order."""
    taken: set[str] = set()
    apart = []
    for name in map(_writable, names):
        number, unique = 1, name
        while unique in taken:
            number += 1
            unique = f"{name} ({number})"
        taken.add(unique)
        apart.append(unique)
    return apart


def _writable(text: str) -> str:
    return _UNWRITABLE.sub("\ufffd", text)


def _rule(name: str) -> dict[str, Any]:
    meaning = _PROOF if name == "proof" else f"the policy's {name}"
    return {"id": name, "shortDescription": {"text": meaning}}


def _result(
    rules: Sequence[str], report: Document, subject: Document, judgment: Document, mark: str
) -> dict[str, Any]:
    kind, level = _LEVELS[judgment["outcome"]]
    path = f"{report['title']}/{subject['name']}"
    return {
        "ruleId": judgment["limit"],
        "ruleIndex": rules.index(judgment["limit"]),
        "kind": kind,
        "level": level,
        "message": {"text": f"{subject['name']}: {judgment['words']}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": report["policy_source"] or "policy.toml"},
                    "region": {"startLine": 1},
                },
                "logicalLocations": [{"fullyQualifiedName": path, "kind": "resource"}],
            }
        ],
        "partialFingerprints": {"shieldnet/v1": sha256(mark.encode()).hexdigest()},
    }
