"""What a reader must be told beside a number: what it hides, or why it does not vary."""

import re
from dataclasses import replace

from shieldnet.findings.finding import NO_USE, UNREAD, Finding, Outcome, decimals

_BETTER = "better than the label alone, so the adversary uses the label"
BY_LABEL = f"no decoder was significantly {_BETTER}"
BY_MEAN = "no decoder was significantly better than the mean input, so the adversary uses the mean"
BY_WINNERS = (
    "no decoder was significantly better than the classes alone that are released at each "
    "position, so the adversary uses those"
)
"""The notes of an inversion whose adversary uses no more of an answer: of classes, of values and
embeddings, of maps."""
_WITHOUT_LABEL = {
    BY_LABEL: BY_MEAN,
    "the label alone": "the mean input",
    "beyond its label": "beyond the mean input",
}
FEW_CLASSES = "too few classes for a narrow interval"
"""Ends the note of a measurement whose samples are the classes."""
_SAYS_NOTHING = "the interval spans the whole range, so it says nothing"
_NO_VARIATION = "it is the same in every resample"
_NARROW = "the interval is narrower than 0.001"
_ALL_GIVEN = "the answers give the column away in every row, or nearly"
_MOST_GAIN, _LITTLE = 0.4995, 0.001
_LEAKS = ("attribute", "averaging", "inversion")
_GROUP = re.compile(
    r"^.* on (?P<group>(?:class |[^=]+ = ).+|quarter \d of the targets(?: of output \d+)?)"
    r", of \d+ groups$"
)
BY_RANKS = "heavy-tailed: measured by ranks"
BY_VALUES = "heavy-tailed: measured by its values, of which more is given away than of its ranks"
"""Notes of findings about one column."""
OF_COLUMNS = "inversion.column."
"""What the names of findings about one column begin with."""
OF_MAPS = ("inversion.map", "inversion.search.map", "white_box.inversion.map")
"""Name the leakages of maps."""
_AVERAGED_MAPS = "averaging.map."
_ACCURACY_OF = "accuracy.group."
_WORST_GROUP = "membership.worst_group.auc"
_GUESSES = {
    "accuracy": "always naming the most frequent class",
    "r2": "always giving the mean target",
}


def caveat(finding: Finding) -> str:
    """Returns what must stand beside a number, or nothing."""
    low, high, note = finding.low, finding.high, finding.note
    if low <= 0.0005 and high >= 0.9995:
        return f"{FEW_CLASSES}: it says nothing" if FEW_CLASSES in note else _SAYS_NOTHING
    for known in (NO_USE, UNREAD, BY_LABEL, BY_MEAN, BY_WINNERS, FEW_CLASSES, BY_RANKS, BY_VALUES):
        if known in note:
            return known
    if _BETTER in note:  # as older reports say it
        return BY_LABEL
    if decimals(low) != decimals(high):
        return ""
    family = re.split(r"[._]", finding.name)[0]
    if family == "attribute" and finding.name.endswith(".gain") and low >= _MOST_GAIN:
        return _ALL_GIVEN
    if low == high:
        return _unvarying(finding)
    is_little = family in _LEAKS and abs(high) < _LITTLE
    return f"the answers add less than 0.001, on {_rows(finding)}" if is_little else _NARROW


def _unvarying(finding: Finding) -> str:
    """Says what an interval of width zero comes from."""
    family = re.split(r"[._]", finding.name)[0]
    if finding.value == 0 and family == "attribute":
        return f"the answers add nothing to the guess without them in any of the {_rows(finding)}"
    if finding.value == 0 and family in ("inversion", "averaging"):
        return f"the answers add nothing in any of the {_rows(finding)}"
    return _NO_VARIATION


def _rows(finding: Finding) -> str:
    return f"{finding.samples:,} rows"


def is_binary(kind: str) -> bool:
    """Returns whether answers of a kind are decisions, each with a probability of its own."""
    return kind.startswith("binary")


def without_label(outcome: Outcome) -> Outcome:
    """Returns what was found of values or embeddings, in words that name no label."""

    def reworded(text: str) -> str:
        for of_classes, of_vectors in _WITHOUT_LABEL.items():
            text = text.replace(of_classes, of_vectors)
        return text

    findings = (
        replace(one, source=reworded(one.source), note=reworded(one.note))
        for one in outcome.findings
    )
    exposed = (replace(one, words=reworded(one.words)) for one in outcome.exposed)
    return replace(outcome, findings=tuple(findings), exposed=tuple(exposed))


def known_beside(finding: str, kind: str) -> str:
    """Names what a leakage is counted beyond.

    finding: its name. kind: of the answers.
    """
    if finding in OF_MAPS or finding.startswith(_AVERAGED_MAPS):
        return (
            "the decisions released" if is_binary(kind) else "the class released at each position"
        )
    return "the mean input" if kind in ("values", "embeddings") else "the label"


def whole_of_map(findings: tuple[Finding, ...]) -> str:
    """Says how much of an input a map gives away with the classes that it releases; "" of others.

    A leakage counts what is beyond those classes.
    """
    whole = next((one for one in findings if one.name == "r2.inversion.map"), None)
    return "" if whole is None else f"input recovered from all that is released: R2 {whole}"


def group_of(finding: Finding) -> str:
    """Returns the class or subgroup that a finding on the worst one is about, or nothing."""
    found = _GROUP.search(finding.source) if finding.name == _WORST_GROUP else None
    return "" if found is None else found["group"]


def worst_group(findings: tuple[Finding, ...]) -> str:
    """Says which class or subgroup is attacked significantly, and more than all records together.

    Returns "" where none is.
    """
    by_name = {finding.name: finding for finding in findings}
    worst, whole = by_name.get(_WORST_GROUP), by_name.get("membership.auc")
    if worst is None or worst.low <= worst.baseline:
        return ""
    if whole is not None and worst.value <= whole.value:
        return ""
    return f"worst group: {group_of(worst) or 'unnamed'}, membership AUC {worst}"


def worst_column(findings: tuple[Finding, ...]) -> str:
    """Says which column is given away significantly, and more than all columns together, or "".

    The leakage of all columns is a mean, most of which a model may hardly read.
    """
    whole = next((finding.value for finding in findings if finding.name == "inversion"), 0.0)
    columns = [finding for finding in findings if finding.name.startswith(OF_COLUMNS)]
    worst = max(columns, key=lambda finding: finding.value, default=None)
    if worst is None or worst.low <= 0 or worst.value <= whole:
        return ""
    units = next((f" ({note})" for note in (BY_RANKS, BY_VALUES) if note in worst.note), "")
    return f"most exposed column: {worst.name.removeprefix(OF_COLUMNS)}, leakage {worst}{units}"


def lowest_group(findings: tuple[Finding, ...]) -> str:
    """Says of which class or subgroup the fewest are right, or "" where none is measured."""
    groups = [finding for finding in findings if finding.name.startswith(_ACCURACY_OF)]
    worst = min(groups, key=lambda finding: finding.value, default=None)
    if worst is None:
        return ""
    return f"lowest accuracy of a group: {worst.name.removeprefix(_ACCURACY_OF)}, {worst}"


def guess(finding: Finding) -> str:
    """Says what a measure of use reaches without the model, or nothing where that is unknown.

    Of a group that is the most frequent class itself it says nothing, and is left out.
    """
    name, _, group = finding.name.partition(".group.")
    words = _GUESSES.get(name)
    if words is None or (group and finding.baseline >= 1):
        return ""
    return f"{words}: {decimals(finding.baseline)}"
