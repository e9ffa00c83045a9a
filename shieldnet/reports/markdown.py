"""Reports as Markdown: for a pull request, for the summary of a run, for a model card."""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shieldnet.core.checks import optional
from shieldnet.core.errors import DataError
from shieldnet.findings.finding import decimals
from shieldnet.findings.metrics import Metric
from shieldnet.gate.declared import declared
from shieldnet.privacy.cost import rounded_up

Document = Mapping[str, Any]

_MARKS = {
    "pass": "✅ passes",
    "fail": "❌ fails",
    "inconclusive": "❔ inconclusive",
    "not judged": "not judged",
}
_BEGIN, _END = "<!-- shieldnet: begin -->", "<!-- shieldnet: end -->"
_READING = (
    "Bits are proven upper bounds for one answer. The rest is measured, with 95% intervals: "
    "lower bounds of what an attacker may reach. Leakage 0 means that an answer tells no more "
    "about the input than its label, 1 that it tells everything."
)
_CARD = (
    "The answers of this model were attacked with shieldnet, by adversaries who know every "
    "defense. What follows is evidence, not a claim that the model is private."
)


def as_markdown(document: Document) -> str:
    """Writes verdict, headline table, judgments, evidence and what was not tested."""
    return "\n".join(line for report in document["reports"] for line in _report(report)) + "\n"


def as_card(document: Document, card: str) -> str:
    """Returns a model card with a section on the audit, new or in place of an older one.

    Nothing else in the card changes, but for the tag ``shieldnet``.
    card: the text of the README.md that there is, or nothing.
    Errors: DataError for a card whose metadata cannot be read.
    """
    hub = optional("huggingface_hub", extra="card")
    lines = [line for report in document["reports"] for line in _summary(report, "###")]
    section = "\n".join([_BEGIN, "## What the answers give away", "", _CARD, "", *lines, _END])
    if not card.startswith("---"):
        card = f"---\ntags:\n- shieldnet\n---\n{card}"
    try:
        model_card = hub.ModelCard(card, ignore_metadata_errors=False)
    except Exception as unreadable:  # of YAML or of the hub's own kinds
        raise DataError(f"The model card's metadata cannot be read: {unreadable}") from unreadable
    tags = model_card.data.tags or []
    if "shieldnet" not in tags:
        model_card.data.tags = [*tags, "shieldnet"]
    # Cut by hand: a section may hold what a regular expression's replacement would read.
    before, begun, rest = model_card.text.partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if bool(begun) != bool(ended):
        raise DataError(f"The model card has {_BEGIN} without {_END}: fix or delete it.")
    text = f"{before}{section}{after}" if begun else f"{model_card.text.rstrip()}\n\n{section}\n"
    model_card.text = text
    return str(model_card)


def _report(report: Document) -> Iterator[str]:
    yield from _summary(report, "##")
    judgments = [
        (subject["name"], judgment["outcome"], judgment["words"])
        for subject in report["subjects"]
        for judgment in subject["verdict"]["judgments"]
    ]
    if judgments:
        yield "<details><summary>What decided</summary>\n"
        yield from _table(("shield", "outcome", "why"), judgments)
        yield "\n</details>\n"
    yield "<details><summary>Evidence for an auditor</summary>\n"
    yield (
        "On OWASP AISVS 1.0, MITRE ATLAS, NIST AI 100-2e2025 and EDPB Opinion 28/2024; evidence, "
        "never a claim of compliance.\n"
    )
    yield from _table(
        ("item", "asks that", "status", "evidence"),
        [
            (f"{item['standard']} {item['item']}", item["asks"], item["status"], item["words"])
            for item in report["evidence"]
        ],
    )
    yield "\n</details>\n"


def _summary(report: Document, heading: str) -> Iterator[str]:
    yield f"{heading} {_plain(report['title'])}: {_MARKS[report['outcome']]}\n"
    yield f"{_READING}\n"
    metrics = declared().headlines(
        finding["name"] for subject in report["subjects"] for finding in subject["findings"]
    )
    headers = ["shield", "policy", "bits", *(metric.title for metric in metrics)]
    rows = [_headline(subject, metrics) for subject in report["subjects"]]
    kept = [n for n in range(len(headers)) if any(row[n] != "-" for row in rows)]
    yield from _table([headers[n] for n in kept], [[row[n] for n in kept] for row in rows])
    if report["guarantee"] is not None:
        yield f"\nTraining: {report['guarantee']['words']}, proven."
        for premise in report["guarantee"]["premises"]:
            yield f"Assumption: {_plain(premise)}."
    yield f"\n**Not tested**: {_plain('; '.join(report['untested']))}.\n"


def _headline(subject: Document, metrics: Sequence[Metric]) -> list[str]:
    bits = subject["certificate"]["bits"]
    shown = "infinite" if isinstance(bits, str) else rounded_up(bits)
    cells = [_worst(subject["findings"], metric) for metric in metrics]
    return [subject["name"], _MARKS[subject["verdict"]["outcome"]], shown, *cells]


def _worst(findings: Sequence[Document], metric: Metric) -> str:
    metrics = declared()
    measured = [finding for finding in findings if metrics.find(finding["name"]) == metric]
    if not measured:
        return "-"
    worst = max(measured, key=lambda finding: finding["value"])
    low, high = decimals(worst["low"]), decimals(worst["high"])
    return f"{decimals(worst['value'])} ({low} to {high})"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headers)} |"
    yield f"| {' | '.join('---' for _ in headers)} |"
    for row in rows:
        yield f"| {' | '.join(_plain(cell) for cell in row)} |"


def _plain(text: str) -> str:
    """Keeps words from being read as Markdown or HTML, on one line."""
    one_line = re.sub(r"\s+", " ", text)
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(one_line, quote=False))
