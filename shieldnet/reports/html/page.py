"""One self-contained page that people look at: verdict, explorer, images, numbers, limits."""

import base64
import json
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from shieldnet.core.checks import optional
from shieldnet.findings.finding import Finding, Threat, decimals
from shieldnet.findings.reading import OF_COLUMNS, caveat, known_beside
from shieldnet.gate.declared import declared
from shieldnet.privacy.cost import rounded_up
from shieldnet.reports.html.charts.drawing import (
    COLORS,
    EVERY,
    charts,
    draws_use,
    leakage,
)
from shieldnet.reports.html.images import (
    class_images,
    inputs_drawn,
    leak_map,
    null_map,
    read_from,
)
from shieldnet.reports.judged import advice_of
from shieldnet.reports.table import headings, remarks
from shieldnet.reports.untested import parted

_ROOM = Path(__file__).parent
_TEMPLATE, _SCRIPT = "report.html.jinja", "report.js"
_MAX_NAMED = 6
_UNJUDGED = (
    "No policy was given, so nothing is judged; the measurements are below. Write limits with "
    "shieldnet policy init, and judge this report with shieldnet report report.json --policy FILE."
)
_LIBRARY = "window.vegaEmbed = vegaEmbed;"


def page(document: Mapping[str, Any]) -> str:
    """Renders a report document as one HTML file: no request, no font to load, no cookie.

    Charts are Vega-Lite, whose whole library is in the page; only the two scripts named by
    their hash in its content security policy run, and none can reach a network.
    Source: the document of ``Report.save``, schema shieldnet.report/1.
    Errors: MissingDependency without vl-convert.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_ROOM),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "interval": _interval,
        "decimals": decimals,
        "threat": lambda threat: str(Threat(**threat)),
        "caveat": lambda one: caveat(Finding.read(one)),
        "better": _better,
    }
    scripts = [_library(), (_ROOM / _SCRIPT).read_text(encoding="utf-8")]
    return environment.get_template(_TEMPLATE).render(
        sections=[_section(report) for report in document["reports"]],
        schema=document["schema"],
        every=EVERY,
        scripts=scripts,
        hashes=[_script_hash(script) for script in scripts],
    )


@cache
def _library() -> str:
    """Returns Vega, Vega-Lite and Vega-Embed in one script."""
    bundle: str = optional("vl_convert", extra="html").javascript_bundle(_LIBRARY)
    return bundle.replace("</script", "<\\/script")


def _compiled(spec: Mapping[str, Any]) -> str:
    """Returns a chart as Vega, in JSON that cannot end the element around it."""
    vega = optional("vl_convert", extra="html").vegalite_to_vega(spec)
    return json.dumps(vega).replace("<", "\\u003c")


def _script_hash(script: str) -> str:
    return base64.b64encode(sha256(script.encode()).digest()).decode()


def _section(report: Mapping[str, Any]) -> dict[str, Any]:
    subjects = [_panel(report, number) for number in range(len(report["subjects"]))]
    return {
        **report,
        "subjects": subjects,
        "headline": _headline(subjects, report.get("kind", "")),
        "known": known_beside("inversion", report.get("kind", "")),
        "remarks": remarks(
            tuple(
                (subject["name"], tuple(map(Finding.read, subject["findings"])))
                for subject in report["subjects"]
            )
        ),
        "draws_use": draws_use(report),
        "verdict": _verdict(report),
        "advice": advice_of(report),
        "limits": _limits(report),
        "untested_parts": parted(report["untested"]),
        "agreement": subjects[0]["by_name"].get("attribution.rank_correlation"),
        "masking": [
            (subject, subject["by_name"]["masking"], subject["by_name"]["masking.captum"])
            for subject in subjects
            if "masking" in subject["by_name"]
        ],
        "sent": inputs_drawn(report),
        "null_map": null_map(report),
        "charts": {name: _compiled(spec) for name, spec in charts(report).items()},
    }


def _panel(report: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Returns what the page shows of one shield."""
    subject = report["subjects"][number]
    by_name = {finding["name"]: finding for finding in subject["findings"]}
    leak = leakage(subject)  # the worst of one answer and of many averaged
    judged = subject["name"] != "bare" or len(report["subjects"]) == 1
    decided = [
        judgment["finding"]
        for judgment in subject["verdict"]["judgments"]
        if judgment["outcome"] != "pass"
    ]
    leaks = [] if leak is None else [leak["name"]]
    heads = headings(by_name)
    findings = [Finding.read(one) for one in subject["findings"]]
    worst = [found.name for head in heads if (found := head.worst(findings)) is not None]
    shown = [*leaks, *worst, *decided]
    return {
        "curves": {},
        "durations_s": {},
        "configuration": "",
        **subject,
        "exposed": [one for one in map(_exposed, subject.get("exposed", ())) if one["groups"]],
        "columns": [one for one in subject["findings"] if one["name"].startswith(OF_COLUMNS)],
        "others": [one for one in subject["findings"] if not one["name"].startswith(OF_COLUMNS)],
        "color": COLORS[number % len(COLORS)],
        "judged": judged,
        "by_name": by_name,
        "leak": leak,
        "headlines": [
            (_title(name), by_name[name]) for name in dict.fromkeys(shown) if name in by_name
        ],
        "read": read_from(report, subject),
        "map": leak_map(report, subject),
        "class_images": class_images(report, subject),
    }


def _exposed(one: Mapping[str, Any]) -> dict[str, Any]:
    """Puts the rows of the same value together, each group with its value in words.

    Rows of which nothing is given away, a value of 0.000, are no exposed records.
    """
    is_count = one["words"].startswith("of ")
    groups: dict[str, list[int]] = {}
    for row, value in zip(one["rows"], one["values"], strict=True):
        shown = f"{value:.0f} {one['words']}" if is_count else decimals(value)
        if is_count or float(shown) > 0:
            groups.setdefault(shown, []).append(row)
    return {**one, "groups": groups, "meaning": "" if is_count else one["words"]}


def _better(name: str) -> str:
    metric = declared().find(name)
    return "" if metric is None else metric.better


def _title(name: str) -> str:
    metric = declared().find(name)
    return name if metric is None else metric.titled(name)


def _verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    """Says in a sentence whether this may be released, and why not."""
    judgments = [
        (subject["name"], judgment)
        for subject in report["subjects"]
        if subject["name"] != "bare" or len(report["subjects"]) == 1
        for judgment in subject["verdict"]["judgments"]
    ]
    outcome = report["outcome"]
    if not judgments:
        return {"outcome": outcome, "words": _UNJUDGED, "reasons": []}
    decisive = [pair for pair in judgments if pair[1]["outcome"] == outcome]
    decided, limits = map(len, (_limits_of(decisive), _limits_of(judgments)))
    single = decided == 1
    verb = {"fail": "fail", "inconclusive": "remain undecided"}.get(outcome, "")
    verb = verb.replace("fail", "fails").replace("remain ", "remains ") if single else verb
    share = f"{decided} of {limits} {'limit' if limits == 1 else 'limits'} {verb}"
    left = len(_limits_of([pair for pair in judgments if pair[1]["outcome"] == "inconclusive"]))
    if outcome == "fail" and left:
        share += f", {left} {'is' if left == 1 else 'are'} inconclusive"
    every = f"all {limits} limits" if limits > 1 else "its one limit"
    sentences = {
        "pass": f"The policy is met: {every}, by whole intervals.",
        "fail": f"The policy is broken: {share}.",
        "inconclusive": f"Inconclusive: there are too few rows, and {share}.",
    }
    if any(judgment["limit"] == "proof" for _, judgment in decisive):
        sentences["fail"] = (
            "Do not release this: a measured value is above its own proven upper bound. The "
            "defense, the accountant or the attack is wrong."
        )
    ranked = sorted(judgments, key=lambda pair: pair[1]["outcome"] == "inconclusive")
    reasons = [
        (judgment["outcome"], f"{name}: {judgment['words']}")
        for name, judgment in ranked
        if judgment["outcome"] != "pass"
    ]
    return {"outcome": outcome, "words": sentences[outcome], "reasons": reasons}


def _limits_of(judgments: Sequence[tuple[str, Mapping[str, Any]]]) -> set[tuple[str, ...]]:
    """Returns the different limits that were judged: one may judge several findings and shields."""
    metrics = declared()
    limits: set[tuple[str, ...]] = set()
    for _, judgment in judgments:
        limit, finding = judgment["limit"], judgment["finding"]
        metric = metrics.find(finding)
        if limit in ("required", "proof", "declared"):
            limits.add((limit, finding))
        else:
            of_groups = metric is not None and metric.of_groups
            limits.add((limit, "of groups" if of_groups else ""))
    return limits


def _limits(report: Mapping[str, Any]) -> list[str]:
    """Writes every limit of the policy."""
    limits = [f"{name} = {limit}" for name, limit in report["policy"].items()]
    limits += [f"required {name}" for name in report["policy_required"]]
    for group, of_group in report["policy_groups"].items():
        whose = "every subgroup" if group == "*" else group
        limits += [f"{name} = {limit} for {whose}" for name, limit in of_group.items()]
    return limits


def _headline(subjects: Sequence[Mapping[str, Any]], kind: str) -> str:
    """Says in two sentences what the bare model gives away and what the shields leave."""
    leaks = [
        (subject["name"], subject["leak"]) for subject in subjects if subject["leak"] is not None
    ]
    if len(leaks) < 2:
        return ""
    (bare, most), *rest = leaks
    if most["low"] <= most["baseline"] and (found := _recognized(subjects)):
        return found
    known = known_beside(most["name"], kind)
    return (
        f"Beyond {known}, the best attack recovers {max(0.0, most['value']):.1%} of the input from "
        f"the {bare} model's answers. {_behind(most, rest)}"
    )


def _behind(bare: Mapping[str, Any], rest: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Says what shields leave, and where that does not differ from the bare model's."""
    if len(rest) == 1:
        (name, leak), more = rest[0], ""
        if not _differs(bare, leak):
            more = "; the difference from the bare model is not significant"
        return f"Behind {name} it recovers {max(0.0, leak['value']):.1%}{more}."
    left = ", ".join(f"{name} {_left(bare, leak)}" for name, leak in rest[:_MAX_NAMED])
    left += f", and {len(rest) - _MAX_NAMED} more" if len(rest) > _MAX_NAMED else ""
    return f"Behind the shields it recovers: {left}."


def _recognized(subjects: Sequence[Mapping[str, Any]]) -> str:
    """Says how often answers tell which record it was, where the bare model's do; else ""."""
    told = [
        (subject["name"], subject["by_name"]["reidentification"])
        for subject in subjects
        if "reidentification" in subject["by_name"]
    ]
    if not told or told[0][0] != subjects[0]["name"]:
        return ""
    bare = told[0][1]
    if bare["low"] <= bare["baseline"]:
        return ""
    shares = ", ".join(f"{name} {one['value']:.0%}" for name, one in told[: _MAX_NAMED + 1])
    return (
        "No attack reconstructed the input, but the answers tell which of "
        f"{bare['samples']} records it was: {shares}."
    )


def _left(bare: Mapping[str, Any], leak: Mapping[str, Any]) -> str:
    """Writes what a shield leaves, and whether that differs from the bare model's at all."""
    return f"{max(0.0, leak['value']):.1%}" + (
        "" if _differs(bare, leak) else " (no significant difference from the bare model)"
    )


def _differs(bare: Mapping[str, Any], leak: Mapping[str, Any]) -> bool:
    return bool(leak["high"] < bare["low"] or leak["low"] > bare["high"])


def _number(value: float | str) -> str:
    return "no bound" if isinstance(value, str) else rounded_up(value)


def _interval(finding: Mapping[str, Any]) -> str:
    return f"{decimals(finding['low'])} to {decimals(finding['high'])}"
