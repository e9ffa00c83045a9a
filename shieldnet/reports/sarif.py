"""Reports as SARIF, which code scanning shows beside what it found itself."""

import json
import re
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import version
from typing import Any

from shieldnet.gate.declared import PROVEN, declared
from shieldnet.reports.judged import Document, judged_subjects, unique_names

_SARIF = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_LEVELS = {"fail": ("fail", "error"), "inconclusive": ("fail", "warning"), "pass": ("pass", "none")}
_OTHERS = {
    "proof": "No measured lower bound may lie above its own proven upper bound.",
    "required": "The policy requires that this finding was measured.",
    "declared": "An imported attack must declare every finding, so that a limit can judge it.",
}
_HELP = "What is judged and what helps: docs/gate.md and docs/report.md of shieldnet."


def as_sarif(document: Document) -> str:
    """Writes a run with a result for each judgment, placed at the policy.

    Source: SARIF 2.1.0 (OASIS, with errata 01).
    """
    judgments = [
        (report, subject, judgment)
        for report in document["reports"]
        for subject in judged_subjects(report)
        for judgment in subject["verdict"]["judgments"]
    ]
    rules = sorted({judgment["limit"] for _, _, judgment in judgments})
    marks = unique_names(
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


def _rule(name: str) -> dict[str, Any]:
    """Describes a limit in a full sentence, with what helps where it is not met."""
    limit = next((one for one in PROVEN if one.name == name), declared().limit_named(name))
    bound, direction = ("at most", "max_") if name.startswith("max_") else ("at least", "min_")
    about = name.removeprefix(direction).replace("_", " ")
    meaning = _OTHERS.get(name, f"The policy's {name}: {about} must be {bound} the limit.")
    text = " ".join(part for part in (meaning, "" if limit is None else limit.helps, _HELP) if part)
    return {
        "id": name,
        "shortDescription": {"text": meaning},
        "fullDescription": {"text": meaning},
        "help": {"text": text},
    }


def _line(report: Document, judgment: Document) -> int:
    """Returns the line of the policy that a judgment is about; the first if it is not known."""
    lines = report.get("policy_lines", {})
    name, metric = judgment["limit"], declared().find(judgment["finding"])
    if metric is not None and metric.of_groups:
        own = (line for key, line in lines.items() if re.fullmatch(rf"groups\..*\.{name}", key))
        return int(next(own, 1))
    return int(lines.get(name, 1))


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
                    "region": {"startLine": _line(report, judgment)},
                },
                "logicalLocations": [{"fullyQualifiedName": path, "kind": "resource"}],
            }
        ],
        "partialFingerprints": {"shieldnet/v1": sha256(mark.encode()).hexdigest()},
    }
