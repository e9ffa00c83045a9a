"""What is drawn of a report: the rows of each chart, put into its Vega-Lite file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from shieldnet.findings.reading import OF_COLUMNS
from shieldnet.gate.declared import declared
from shieldnet.privacy.guarantee import Guarantee

Document = Mapping[str, Any]
Spec = dict[str, Any]
Row = dict[str, Any]

EVERY = "*"
"""What the explorer's parameter ``subject`` is where every shield is shown."""

# Told apart by their lightness too, and with three times the contrast of white and of black.
COLORS = ("#c2410c", "#0d9488", "#4f7cff", "#a855f7", "#b7791f", "#db2777", "#5f8a1f", "#7c8798")

_MAX_COLUMNS = 12
_INTERVAL = ("value", "low", "high")


def charts(report: Document) -> dict[str, Spec]:
    """Returns the charts of a report by name; those that would be empty are left out."""
    values = {
        "bounds": _bounds(report),
        "roc": _roc(report),
        "calibration": _calibration(report),
        "tradeoff": _tradeoff(report),
        "columns": _columns(report),
    }
    names = [subject["name"] for subject in report["subjects"]]
    color = _color(names)
    keyed = {
        **color,
        "legend": {"title": None, "orient": "top", "symbolType": "circle", "symbolOpacity": 1},
    }
    shared = {"subjects": names, "color": color, "keyed_color": keyed}
    frame = _filled(_template("frame"), {"chosen": names[-1]})
    return {
        chart: {**frame, **_filled(_template(chart), {**shared, **own})}
        for chart, own in values.items()
        if own is not None
    }


def leakage(subject: Document) -> Document | None:
    """Returns the worse of what one answer and many averaged give away of an input."""
    metrics = declared()
    judged = metrics.judged_by("max_leakage")
    leaks = [finding for finding in subject["findings"] if metrics.find(finding["name"]) in judged]
    return max(leaks, key=lambda leak: float(leak["value"]), default=None)


@cache
def _template(chart: str) -> Any:
    file = Path(__file__).parent / f"{chart}.vl.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _filled(template: Any, values: Mapping[str, Any]) -> Any:
    """Puts values into the places ``{"$": name}`` of a chart's specification."""
    if isinstance(template, list):
        return [_filled(item, values) for item in template]
    if not isinstance(template, dict):
        return template
    if template.keys() == {"$"}:
        return values[template["$"]]
    return {key: _filled(item, values) for key, item in template.items()}


def _color(names: Sequence[str]) -> Spec:
    scale = {"domain": names, "range": [COLORS[n % len(COLORS)] for n in range(len(names))]}
    return {"field": "subject", "type": "nominal", "scale": scale, "legend": None}


def _bounds(report: Document) -> Spec | None:
    """Puts what was measured, what is proven and what the policy allows on one axis from 0 to 1."""
    rows = [row for subject in report["subjects"] for row in _bound_rows(report, subject)]
    findings = list(dict.fromkeys(row["finding"] for row in rows))
    up = ", ↑ higher is better" if any(row["finding"].endswith("↑") for row in rows) else ""
    directions = f"↓ lower is better{up}"
    return {"rows": rows, "findings": findings, "directions": directions} if rows else None


def draws_use(report: Document) -> bool:
    """Returns whether the chart of bounds has a row of which more is better, as of an accuracy."""
    rows = (row for subject in report["subjects"] for row in _bound_rows(report, subject))
    return any(row["finding"].endswith("↑") for row in rows)


def _bound_rows(report: Document, subject: Document) -> Iterator[Row]:
    """Lists the leaks that a limit could judge; of subgroups and columns those that decided."""
    judgments = subject["verdict"]["judgments"]
    decided = {judgment["finding"] for judgment in judgments if judgment["outcome"] != "pass"}
    metrics = declared()
    for finding in subject["findings"]:
        name, metric = finding["name"], metrics.find(finding["name"])
        is_leak = metric is not None and metric.limit is not None and metric.worse == "more"
        is_one_of_many = name.startswith(OF_COLUMNS) or (metric is not None and metric.of_groups)
        if metric is None or not (name in decided or (is_leak and not is_one_of_many)):
            continue
        limit = None if metric.limit is None else report["policy"].get(metric.limit.name)
        yield {
            "subject": subject["name"],
            "finding": f"{metric.titled(name)} {metric.arrow}",
            "limit": None if metric.of_groups else limit,
            **{key: finding[key] for key in (*_INTERVAL, "baseline", "ceiling")},
            **{key: finding[key] for key in ("samples", "source")},
        }


def _roc(report: Document) -> Spec | None:
    """Draws who is found at which false-positive rate, both on log axes, with bands."""
    rows = [
        {**row, "about": row["about"].removeprefix("membership.").replace("membership", "records")}
        for row in _curve_rows(report, ("fpr", "tpr", "low", "high"))
        if row["about"] != "calibration"
    ]
    if not rows:
        return None
    least = min(row["fpr"] for row in rows)
    bottom = max(1e-4, min(least, *(row["tpr"] or 1.0 for row in rows)))
    return {
        "rows": rows,
        "references": [
            *({"kind": "chance", "fpr": rate, "tpr": rate} for rate in (least, 1.0)),
            *_proven(report, least),
        ],
        "fpr_range": [least, 1],
        "tpr_range": [bottom, 1],
    }


def _proven(report: Document, least: float) -> list[Row]:
    """Lists the curve above which no membership attack on the training can come."""
    if report.get("guarantee") is None:
        return []
    guarantee = Guarantee.read(report["guarantee"])
    rates = [min(1.0, float(rate)) for rate in np.geomspace(least, 1, 30)]
    return [{"kind": "proven", "fpr": fpr, "tpr": guarantee.distinguish(fpr)} for fpr in rates]


def _calibration(report: Document) -> Spec | None:
    """Draws the share of answers that are right against their confidence, beside the diagonal."""
    names = ("confidence", "accuracy", "low", "high")
    rows = [row for row in _curve_rows(report, names) if row["about"] == "calibration"]
    if not rows:
        return None
    least = min(0.9, *(min(row["confidence"], row["low"]) for row in rows))
    diagonal = [{"confidence": end, "accuracy": end} for end in (least, 1)]
    return {"rows": rows, "range": [least, 1], "diagonal": diagonal}


def _curve_rows(report: Document, names: Sequence[str]) -> Iterator[Row]:
    """Lists the points of every curve. names: of a point's fpr, tpr, low and high."""
    for subject in report["subjects"]:
        for about, curve in subject.get("curves", {}).items():
            numbers = (curve[key] for key in ("fpr", "tpr", "low", "high"))
            for point in zip(*numbers, strict=True):
                row = dict(zip(names, point, strict=True))
                yield {"subject": subject["name"], "about": about, **row}


def _tradeoff(report: Document) -> Spec | None:
    """Draws accuracy against inversion leakage, both with their intervals, the chosen one bold."""
    rows = []
    for subject in report["subjects"]:
        by_name = {finding["name"]: finding for finding in subject["findings"]}
        accuracy, leak = by_name.get("accuracy"), leakage(subject)
        if accuracy is not None and leak is not None:
            intervals = {"leakage": leak, "accuracy": accuracy}
            rows.append({"subject": subject["name"], **_flat(intervals)})
    return {"rows": rows} if len(rows) > 1 else None


def _flat(intervals: Mapping[str, Document]) -> Row:
    """Names estimate and ends of each interval: leakage, leakage_low, leakage_high."""
    suffixes = {"value": "", "low": "_low", "high": "_high"}
    return {
        f"{name}{suffix}": finding[key]
        for name, finding in intervals.items()
        for key, suffix in suffixes.items()
    }


def _columns(report: Document) -> Spec | None:
    """Draws the columns that leak most through the bare model, and what is left of each."""
    leaks = [_column_leaks(subject) for subject in report["subjects"]]
    ranked = sorted(leaks[0], key=lambda column: -leaks[0][column]["value"])[:_MAX_COLUMNS]
    rows = [
        {
            "subject": subject["name"],
            "column": column,
            **{key: finding[key] for key in _INTERVAL},
        }
        for subject, columns in zip(report["subjects"], leaks, strict=True)
        for column, finding in columns.items()
        if column in ranked
    ]
    return {"rows": rows, "columns": ranked} if rows else None


def _column_leaks(subject: Document) -> dict[str, Document]:
    return {
        finding["name"].removeprefix(OF_COLUMNS): finding
        for finding in subject["findings"]
        if finding["name"].startswith(OF_COLUMNS)
    }
