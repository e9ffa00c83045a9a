"""What is drawn of a report, as Vega-Lite: bounds, ROC curves, calibration, utility, columns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from shieldnet.gate.declared import declared
from shieldnet.privacy.guarantee import Guarantee

Document = Mapping[str, Any]
Spec = dict[str, Any]

EVERY = "*"
"""What the explorer's parameter ``subject`` says where every shield is shown."""

# Told apart by their lightness too, and with three times the contrast of white and of black.
COLORS = ("#c2410c", "#0d9488", "#4f7cff", "#a855f7", "#b7791f", "#db2777", "#5f8a1f", "#7c8798")

_MAX_COLUMNS = 12
_INK = "currentColor"
_CHOSEN = f"subject == '{EVERY}' || datum.subject == subject"
_PERCENT = ".3~f"


def charts(report: Document) -> dict[str, Spec]:
    """Returns the charts of a report by name; those that would be empty are left out."""
    names = [subject["name"] for subject in report["subjects"]]
    found = {
        "bounds": _bounds(report),
        "roc": _roc(report),
        "calibration": _calibration(report),
        "tradeoff": _tradeoff(report),
        "columns": _columns(report),
    }
    return {name: _chart(spec, names) for name, spec in found.items() if spec is not None}


def leakage(subject: Document) -> Document | None:
    """Returns the worse of what one answer and many averaged give away of an input."""
    metrics = declared()
    judged = metrics.judged_by("max_leakage")
    found = [one for one in subject["findings"] if metrics.find(one["name"]) in judged]
    return max(found, key=lambda one: float(one["value"]), default=None)


def _chart(spec: Spec, names: Sequence[str]) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "background": None,
        "params": [{"name": "subject", "value": names[-1]}],
        "config": {
            "font": "system-ui, sans-serif",
            "view": {"stroke": None},
            "axis": {
                "labelColor": _INK,
                "titleColor": _INK,
                "domainColor": _INK,
                "tickColor": _INK,
                "gridColor": _INK,
                "gridOpacity": 0.13,
                "labelFontSize": 12,
                "titleFontSize": 12,
                "titleFontWeight": "normal",
                "labelLimit": 150,
            },
            "legend": {"labelColor": _INK, "titleColor": _INK, "labelFontSize": 12},
            "range": {"category": list(COLORS)},
            # Every number stands in the tables too, which screen readers read better.
            "mark": {"aria": False},
        },
        **spec,
    }


def _color(names: Sequence[str]) -> Spec:
    scale = {"domain": list(names), "range": [COLORS[n % len(COLORS)] for n in range(len(names))]}
    return {"field": "subject", "type": "nominal", "scale": scale, "legend": None}


def _bounds(report: Document) -> Spec | None:
    """Puts what was measured, what is proven and what the policy allows on one axis from 0 to 1."""
    rows = [row for subject in report["subjects"] for row in _bound_rows(report, subject)]
    if not rows:
        return None
    names = [subject["name"] for subject in report["subjects"]]
    order = list(dict.fromkeys(row["finding"] for row in rows))
    y = {
        "field": "finding",
        "type": "nominal",
        "sort": order,
        "title": None,
        "axis": {"grid": True, "labelPadding": 8},
    }
    offset = {"field": "subject", "type": "nominal", "sort": names}
    x = {
        "type": "quantitative",
        "scale": {"domain": [0, 1], "clamp": True},
        "title": ["0: nothing beyond the label, or never", "1: everything, or always"],
    }
    tooltip = [
        {"field": "subject", "title": "shield"},
        {"field": "finding"},
        {"field": "value", "format": _PERCENT},
        {"field": "low", "format": _PERCENT},
        {"field": "high", "format": _PERCENT},
        {"field": "baseline", "format": _PERCENT},
        {"field": "ceiling", "title": "proven at most"},
        {"field": "limit", "title": "the policy's limit"},
        {"field": "samples", "title": "rows"},
        {"field": "source", "title": "by"},
    ]
    shared: Spec = {"y": y, "yOffset": offset, "color": _color(names), "tooltip": tooltip}

    def at(field: str) -> Spec:
        return {**shared, "x": {**x, "field": field}}

    return {
        "description": "What was measured of each shield with its interval, beside baseline, "
        "policy limit and proven upper bound. The table of every measurement has the numbers.",
        "height": {"step": 22, "for": "offset"},
        "data": {"values": rows},
        "transform": [{"filter": _CHOSEN}],
        "layer": [
            {
                "mark": {"type": "bar", "height": 7, "opacity": 0.45, "cornerRadius": 3},
                "encoding": {**at("low"), "x2": {"field": "high"}},
            },
            {"mark": {"type": "point", "filled": True, "size": 70}, "encoding": at("value")},
            {
                "mark": {"type": "tick", "thickness": 2, "height": 16, "color": _INK},
                "encoding": {**at("baseline"), "color": {"value": _INK}, "opacity": {"value": 0.5}},
            },
            {
                "transform": [{"filter": "datum.limit != null"}],
                "mark": {"type": "point", "shape": "diamond", "size": 80},
                "encoding": {**at("limit"), "color": {"value": _INK}},
            },
            {
                "transform": [{"filter": "datum.ceiling != null"}],
                "mark": {"type": "point", "shape": "triangle-left", "size": 120, "filled": True},
                "encoding": at("ceiling"),
            },
        ],
    }


def _bound_rows(report: Document, subject: Document) -> Iterator[Spec]:
    """Lists the leaks that a limit could judge, of subgroups those alone that decided."""
    judgments = subject["verdict"]["judgments"]
    decided = {one["finding"] for one in judgments if one["outcome"] != "pass"}
    metrics = declared()
    for finding in subject["findings"]:
        name, metric = finding["name"], metrics.find(finding["name"])
        is_leak = metric is not None and metric.limit is not None and metric.worse == "more"
        if metric is None or not (name in decided or (is_leak and not metric.of_groups)):
            continue
        limit = None if metric.limit is None else report["policy"].get(metric.limit.name)
        kept = ("value", "low", "high", "baseline", "ceiling", "samples", "source")
        yield {
            "subject": subject["name"],
            "finding": metric.titled(name),
            "limit": None if metric.of_groups else limit,
            **{part: finding[part] for part in kept},
        }


def _roc(report: Document) -> Spec | None:
    """Draws who is found at which false-positive rate, both on log axes, with bands."""
    rows = [
        {
            "subject": subject["name"],
            "about": about.removeprefix("membership.").replace("membership", "records"),
            **dict(zip(("fpr", "tpr", "low", "high"), point, strict=True)),
        }
        for subject in report["subjects"]
        for about, curve in subject.get("curves", {}).items()
        if about != "calibration"
        for point in zip(*(curve[part] for part in ("fpr", "tpr", "low", "high")), strict=True)
    ]
    if not rows:
        return None
    names = [subject["name"] for subject in report["subjects"]]
    least = min(row["fpr"] for row in rows)
    bottom = max(1e-4, min(least, *(row["tpr"] or 1.0 for row in rows)))
    lines = [{"kind": "chance", "fpr": rate, "tpr": rate} for rate in (least, 1.0)]
    lines += [
        {"kind": "proven", "fpr": rate, "tpr": found} for rate, found in _proven(report, least)
    ]
    x: Spec = {
        "field": "fpr",
        "type": "quantitative",
        "scale": {"type": "log", "domain": [least, 1]},
        "title": "nonmembers taken for members",
        "axis": {"format": ".1~%", "tickCount": 5},
    }
    y: Spec = {
        "field": "tpr",
        "type": "quantitative",
        "scale": {"type": "log", "domain": [bottom, 1], "clamp": True},
        "title": "members found",
        "axis": {"format": ".1~%", "tickCount": 5},
    }
    detail = {"field": "about", "type": "nominal"}
    dash = {**detail, "title": None, "legend": {"orient": "top", "symbolType": "stroke"}}
    return {
        "description": "Receiver operating curves of the strongest membership attack, with 95 % "
        "bands, on log axes, beside chance.",
        "height": 320,
        "data": {"values": rows},
        "layer": [
            {
                "data": {"values": lines},
                "mark": {"type": "line", "color": _INK, "opacity": 0.55, "strokeWidth": 1.5},
                "encoding": {
                    "x": x,
                    "y": y,
                    "detail": {"field": "kind"},
                    "strokeDash": {
                        "field": "kind",
                        "type": "nominal",
                        "scale": {"domain": ["chance", "proven"], "range": [[3, 4], [1, 0]]},
                        "legend": None,
                    },
                },
            },
            {
                "transform": [{"filter": _CHOSEN}],
                "mark": {"type": "area", "opacity": 0.16},
                "encoding": {
                    "x": x,
                    "y": {**y, "field": "low"},
                    "y2": {"field": "high"},
                    "color": _color(names),
                    "detail": detail,
                },
            },
            {
                "transform": [{"filter": _CHOSEN}],
                "mark": {"type": "line", "point": {"size": 18, "filled": True}},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": _color(names),
                    "strokeDash": dash,
                    "tooltip": [
                        {"field": "subject", "title": "shield"},
                        {"field": "about"},
                        {"field": "fpr", "title": "at", "format": ".3~%"},
                        {"field": "tpr", "title": "found", "format": ".3~%"},
                        {"field": "low", "title": "at least", "format": ".3~%"},
                        {"field": "high", "title": "at most", "format": ".3~%"},
                    ],
                },
            },
        ],
        "resolve": {"scale": {"strokeDash": "independent"}},
    }


def _proven(report: Document, least: float) -> list[tuple[float, float]]:
    """Returns the curve above which no membership attack on the training can come."""
    if report.get("guarantee") is None:
        return []
    guarantee = Guarantee.read(report["guarantee"])
    rates = [min(1.0, float(rate)) for rate in np.geomspace(least, 1, 30)]
    return [(rate, guarantee.distinguish(rate)) for rate in rates]


def _calibration(report: Document) -> Spec | None:
    """Draws the share of answers that are right against their confidence, beside the diagonal."""
    rows = [
        {
            "subject": subject["name"],
            **dict(zip(("sure", "right", "low", "high"), point, strict=True)),
        }
        for subject in report["subjects"]
        for about, curve in subject.get("curves", {}).items()
        if about == "calibration"
        for point in zip(*(curve[part] for part in ("fpr", "tpr", "low", "high")), strict=True)
    ]
    if not rows:
        return None
    names = [subject["name"] for subject in report["subjects"]]
    least = min(0.9, *(min(row["sure"], row["low"]) for row in rows))
    scale = {"domain": [least, 1], "clamp": True}
    x: Spec = {"field": "sure", "type": "quantitative", "title": "confidence", "scale": scale}
    y: Spec = {"field": "right", "type": "quantitative", "title": "share right", "scale": scale}
    tooltip = [
        {"field": "subject", "title": "shield"},
        {"field": "sure", "title": "confidence", "format": _PERCENT},
        {"field": "right", "title": "share right", "format": _PERCENT},
        {"field": "low", "title": "at least", "format": _PERCENT},
        {"field": "high", "title": "at most", "format": _PERCENT},
    ]
    here: Spec = {"x": x, "y": y, "color": _color(names), "tooltip": tooltip}
    return {
        "description": "The share of answers that are right against their confidence, with 95 % "
        "intervals, beside the diagonal.",
        "height": 260,
        "data": {"values": rows},
        "layer": [
            {
                "data": {"values": [{"sure": end, "right": end} for end in (least, 1)]},
                "mark": {"type": "line", "color": _INK, "opacity": 0.55, "strokeDash": [3, 4]},
                "encoding": {"x": x, "y": y},
            },
            {
                "transform": [{"filter": _CHOSEN}],
                "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.5},
                "encoding": {**here, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "transform": [{"filter": _CHOSEN}],
                "mark": {"type": "line", "point": {"size": 50, "filled": True}},
                "encoding": here,
            },
        ],
    }


def _tradeoff(report: Document) -> Spec | None:
    """Draws accuracy against inversion leakage, both with their intervals, the chosen one bold."""
    rows = []
    for subject in report["subjects"]:
        right = next((one for one in subject["findings"] if one["name"] == "accuracy"), None)
        leak = leakage(subject)
        if right is not None and leak is not None:
            rows.append(
                {
                    "subject": subject["name"],
                    **{f"leak_{part}": leak[part] for part in ("value", "low", "high")},
                    **{f"right_{part}": right[part] for part in ("value", "low", "high")},
                }
            )
    if len(rows) < 2:
        return None
    x: Spec = {"type": "quantitative", "title": "leakage of the input", "scale": {"padding": 40}}
    y: Spec = {"type": "quantitative", "title": "accuracy", "scale": {"zero": False}}
    names = [subject["name"] for subject in report["subjects"]]
    bold = {"condition": {"test": _CHOSEN, "value": 1}, "value": 0.28}
    shared = {"color": _color(names), "opacity": bold}
    tooltip = [
        {"field": "subject", "title": "shield"},
        {"field": "leak_value", "title": "leakage", "format": _PERCENT},
        {"field": "right_value", "title": "accuracy", "format": _PERCENT},
    ]
    here: Spec = {
        "x": {**x, "field": "leak_value"},
        "y": {**y, "field": "right_value"},
        "tooltip": tooltip,
        **shared,
    }
    return {
        "description": "Accuracy against leakage of the input, for each shield.",
        "height": 260,
        "data": {"values": rows},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {
                    **here,
                    "x": {**x, "field": "leak_low"},
                    "x2": {"field": "leak_high"},
                },
            },
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {
                    **here,
                    "y": {**y, "field": "right_low"},
                    "y2": {"field": "right_high"},
                },
            },
            {"mark": {"type": "point", "filled": True, "size": 90}, "encoding": here},
            {
                "mark": {"type": "text", "align": "left", "dx": 9, "dy": -9, "fontSize": 12},
                "encoding": {**here, "text": {"field": "subject"}, "color": {"value": _INK}},
            },
        ],
    }


def _columns(report: Document) -> Spec | None:
    """Draws the columns that leak most through the bare model, and what is left of each."""
    prefix = "inversion.column."
    first = [one for one in report["subjects"][0]["findings"] if one["name"].startswith(prefix)]
    ranked = sorted(first, key=lambda one: -one["value"])[:_MAX_COLUMNS]
    order = [one["name"].removeprefix(prefix) for one in ranked]
    rows = [
        {
            "subject": subject["name"],
            "column": one["name"].removeprefix(prefix),
            **{part: one[part] for part in ("value", "low", "high")},
        }
        for subject in report["subjects"]
        for one in subject["findings"]
        if one["name"].removeprefix(prefix) in order and one["name"].startswith(prefix)
    ]
    if not rows:
        return None
    names = [subject["name"] for subject in report["subjects"]]
    x: Spec = {"type": "quantitative", "title": "leakage of the column"}
    here: Spec = {
        "y": {"field": "column", "type": "nominal", "sort": order, "title": None},
        "yOffset": {"field": "subject", "type": "nominal", "sort": names},
        "color": _color(names),
        "tooltip": [
            {"field": "subject", "title": "shield"},
            {"field": "column"},
            {"field": "value", "format": _PERCENT},
            {"field": "low", "format": _PERCENT},
            {"field": "high", "format": _PERCENT},
        ],
    }
    return {
        "description": "Leakage of the columns that leak most, with intervals, for each shield.",
        "height": {"step": 18, "for": "offset"},
        "data": {"values": rows},
        "transform": [{"filter": _CHOSEN}],
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.5},
                "encoding": {**here, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": {**here, "x": {**x, "field": "value"}},
            },
        ],
    }
