"""Reports as Markdown: for a pull request, for the summary of a run, for a model card."""

import html
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from shieldnet.core.checks import optional
from shieldnet.core.errors import DataError
from shieldnet.findings.finding import Finding, decimals
from shieldnet.findings.reading import caveat
from shieldnet.privacy.cost import rounded_up
from shieldnet.reports.judged import advice_of, judged_subjects
from shieldnet.reports.table import ARROWS, Heading, headings, remarks, scales
from shieldnet.reports.untested import parted

Document = Mapping[str, Any]

_MARKS = {
    "pass": "✅ passes",
    "fail": "❌ fails",
    "inconclusive": "❔ inconclusive",
    "not judged": "not judged",
}
_BEGIN, _END = "<!-- shieldnet: begin -->", "<!-- shieldnet: end -->"
_READING = (
    "Bits are proven upper bounds for one answer. The rest is measured, with 95% intervals unless "
    f"noted: lower bounds of what an attacker may reach. {ARROWS}."
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
        for subject in judged_subjects(report)
        for judgment in subject["verdict"]["judgments"]
    ]
    advice = advice_of(report)
    if advice:
        yield "What helps:\n"
        yield from (f"- {_plain(line)}" for line in advice)
        yield ""
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
    names = [finding["name"] for subject in report["subjects"] for finding in subject["findings"]]
    yield " ".join((_READING, *scales(names, report.get("kind", "")))) + "\n"
    heads = headings(names)
    headers = ["shield", "policy", "bits ↓", *(head.directed for head in heads)]
    judged = {subject["name"] for subject in judged_subjects(report)}
    rows = [_headline(subject, heads, judged) for subject in report["subjects"]]
    kept = [n for n in range(len(headers)) if any(row[n] != "-" for row in rows)]
    yield from _table([headers[n] for n in kept], [[row[n] for n in kept] for row in rows])
    for remark in remarks(tuple(_measured(subject) for subject in report["subjects"])):
        yield f"\n{_plain(remark)}."
    if report["guarantee"] is not None:
        yield f"\nTraining: {report['guarantee']['words']}, proven."
        for premise in report["guarantee"]["premises"]:
            yield f"Assumption: {_plain(premise)}."
    could, other = parted(report["untested"])
    yield f"\n**Not tested**: {_plain('; '.join(could) or 'nothing that this audit could test')}.\n"
    if other:
        yield f"Does not apply, or cannot be seen from answers: {_plain('; '.join(other))}.\n"


def _headline(subject: Document, heads: Sequence[Heading], judged: Container[str]) -> list[str]:
    bits = subject["certificate"]["bits"]
    shown = "infinite" if isinstance(bits, str) else rounded_up(bits)
    _, findings = _measured(subject)
    cells = [_cell(head, head.worst(findings)) for head in heads]
    outcome = subject["verdict"]["outcome"]
    is_judged = outcome == "not judged" or subject["name"] in judged
    return [subject["name"], _MARKS[outcome] if is_judged else "not judged", shown, *cells]


def _measured(subject: Document) -> tuple[str, tuple[Finding, ...]]:
    return subject["name"], tuple(map(Finding.read, subject["findings"]))


def _cell(head: Heading, worst: Finding | None) -> str:
    if worst is None:
        return "-"
    interval = f"{decimals(worst.value)} ({decimals(worst.low)} to {decimals(worst.high)})"
    beside = head.beside(worst.name)
    more = caveat(worst)
    return f"{interval}{f', {beside}' if beside else ''}{f'; {more}' if more else ''}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headers)} |"
    yield f"| {' | '.join('---' for _ in headers)} |"
    for row in rows:
        yield f"| {' | '.join(_plain(cell) for cell in row)} |"


def _plain(text: str) -> str:
    """Keeps words from being read as Markdown or HTML, on one line."""
    one_line = re.sub(r"\s+", " ", text)
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(one_line, quote=False))
