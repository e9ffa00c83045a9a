"""Reports as SARIF, which code scanning shows beside what it found itself."""

import json
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import version
from typing import Any

from shieldnet.reports.judged import Document, judged_subjects, unique_names

_SARIF = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_LEVELS = {"fail": ("fail", "error"), "inconclusive": ("fail", "warning"), "pass": ("pass", "none")}
_PROOF = "a measured lower bound lies above its own proven upper bound"


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
