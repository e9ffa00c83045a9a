"""The headline table of a report, and the notes under it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from shieldnet.findings.finding import Finding, decimals
from shieldnet.findings.metrics import Metric
from shieldnet.findings.reading import (
    OF_MAPS,
    caveat,
    guess,
    is_binary,
    known_beside,
    lowest_group,
    whole_of_map,
    worst_column,
    worst_group,
)
from shieldnet.gate.declared import declared
from shieldnet.privacy.cost import rounded_up
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.reports.subject import Subject
from shieldnet.reports.untested import labeled, parted, untested_lines

ARROWS = "↓ lower is better, ↑ higher is better"


@dataclass(frozen=True)
class Heading:
    """Heads the column of what one limit judges, or of one column that was asked for.

    metric: of the column. name: of the finding; "" for the worst of them. stands_for_limit: whether
    what else the metric's limit judges is under it too.
    """

    title: str
    metric: Metric
    name: str = ""
    stands_for_limit: bool = False

    def heads(self, finding: str) -> bool:
        """Returns whether a finding of this name stands under it."""
        if self.name:
            return finding == self.name
        found = declared().find(finding)
        if found is None or not self.stands_for_limit:
            return found == self.metric
        return found == self.metric or _of_one_limit(found, self.metric)

    def worst(self, findings: Iterable[Finding]) -> Finding | None:
        """Returns the worst finding under it, or None."""
        measured = [finding for finding in findings if self.heads(finding.name)]
        sign = -1 if self.metric.worse == "less" else 1
        return max(measured, key=lambda finding: sign * finding.value, default=None)

    def beside(self, finding: str) -> str:
        """Returns what tells a finding from the first kind under it, such as "by search"."""
        found = declared().find(finding)
        if self.name or found is None or found == self.metric:
            return ""
        return found.title.removeprefix(self.metric.title).lstrip(", ")

    @property
    def directed(self) -> str:
        """Returns the title with an arrow towards what is better."""
        return f"{self.title} {self.metric.arrow}".rstrip()


def _of_one_limit(one: Metric, other: Metric) -> bool:
    """Returns whether one limit on all records judges both."""
    if one.limit is None or other.limit is None or one.of_groups or other.of_groups:
        return False
    return one.limit.name == other.limit.name


def headings(names: Iterable[str]) -> tuple[Heading, ...]:
    """Returns the headings for findings of these names, in reading order.

    The first column of a limit stands for it.
    """
    found = list(dict.fromkeys(names))
    metrics = declared()
    heads: list[Heading] = []
    for metric in (*metrics.headlines(found), *metrics.substitutes(found)):
        if "{}" not in metric.title:
            is_first = not any(_of_one_limit(metric, head.metric) for head in heads)
            heads.append(Heading(metric.title, metric, stands_for_limit=is_first))
            continue
        own = (name for name in found if metrics.find(name) == metric)
        heads += [Heading(metric.titled(name), metric, name) for name in own]
    return tuple(heads)


def rows_of(subjects: Sequence[Subject]) -> tuple[list[str], list[list[str]]]:
    """Returns the headline table: its headers, and a row for each shield.

    Columns that would be empty or infinite for all of them are left out, but for the bits.
    """
    heads = headings(finding.name for subject in subjects for finding in subject.findings)
    headers = ["shield", "bits ↓", "mu ↓", *(head.directed for head in heads)]
    rows = [_row(subject, heads) for subject in subjects]
    kept = [
        n
        for n, header in enumerate(headers)
        if header == "bits ↓" or any(row[n] not in ("-", "inf") for row in rows)
    ]
    return [headers[n] for n in kept], [[row[n] for n in kept] for row in rows]


def notes_of(
    subjects: Sequence[Subject],
    kind: str,
    guarantee: Guarantee | None,
    listed: str = 'report.save("report.html") lists',
) -> list[str]:
    """Returns what the table needs said under it: how to read it, and what was not tested.

    listed: what lists the rest, with its verb.
    """
    could, other = parted(untested_lines(subjects))
    more, them = ("thing does", "it") if len(other) == 1 else ("things do", "them")
    rest = f"{len(other)} more {more} not apply here or cannot be seen from answers"
    return [
        *remarks(tuple((subject.name, subject.findings) for subject in subjects)),
        *_left_out_of_bare(subjects),
        *_reading(kind, subjects),
        *_caveats(subjects),
        *([] if guarantee is None else _claims(guarantee)),
        *map(labeled, could),
        *([f"not tested: {rest} ({listed} {them})"] if other else []),
    ]


def remarks(measured: Sequence[tuple[str, tuple[Finding, ...]]]) -> list[str]:
    """Returns what the headline table would hide: worst column and group, and what a guess reaches.

    measured: the findings of each shield, by its name.
    """
    ways = (whole_of_map, worst_column, worst_group, lowest_group)
    worst = [(name, way(findings)) for name, findings in measured for way in ways]
    guesses = [
        f"{finding.name} of {words}"
        for _, findings in measured
        for finding in findings
        if ".group." not in finding.name and (words := guess(finding))
    ]
    return [*(f"{name}: {line}" for name, line in worst if line), *dict.fromkeys(guesses)]


def _left_out_of_bare(subjects: Sequence[Subject]) -> Iterator[str]:
    """Says which fields a model's maps are measured without, in the bare model too."""
    for subject in subjects:
        _, without, fields = subject.certificate.shield.partition("; without ")
        is_map = any(finding.name in OF_MAPS for finding in subject.findings)
        if without and is_map and ", no defenses" in subject.certificate.shield:
            yield f"{subject.name}: the model without defenses, and without {fields}"


def _reading(kind: str, subjects: Sequence[Subject]) -> tuple[str, ...]:
    """Says how the table of a model's kind is read."""
    found = [finding for subject in subjects for finding in subject.findings]
    gallery = next((finding for finding in found if finding.name == "reidentification"), None)
    scale = scales([finding.name for finding in found], kind)
    if gallery is not None:
        by_chance = decimals(gallery.baseline)
        known = "by chance" if kind in ("values", "embeddings") else "by the label alone"
        scale += (f"re-identified: the right record is found in a gallery ({known}: {by_chance}).",)
    return (
        "bits, mu: proven upper bounds per answer. The rest: measured lower bounds, with 95% "
        f"intervals. {ARROWS}.",
        *([" ".join(scale)] if scale else []),
    )


def scales(names: Sequence[str], kind: str) -> tuple[str, ...]:
    """Says where the scales of a table begin and end, for findings of these names.

    kind: of the answers.
    """
    leaks = [name for name in names if declared().find(name) in declared().judged_by("max_leakage")]
    said = []
    if leaks:
        known = known_beside(leaks[0], kind)
        said.append(f"leakage: 0 = no more than {known} (below 0: worse), 1 = the whole input.")
    if any(name in OF_MAPS or name.startswith("membership.maps") for name in names):
        right = "decisions that are right"
        if not is_binary(kind):
            right = (
                "positions whose class is right, pixels of a segmentation or cells of the grid "
                "that a detector's boxes are painted on"
            )
        said.append(f"accuracy: share of the {right}.")
    if any(name.startswith("attribute") and name.endswith(".gain") for name in names):
        said.append(
            "attribute gain: how much better a column is guessed with the answers (by AUC; of "
            "several values by accuracy); 0 = no better, 0.5 = from a coin's guess to certainty."
        )
    if any("membership" in name and "auc" in name for name in names):
        said.append("membership AUC: 0.5 is guessing.")
    return tuple(said)


def _caveats(subjects: Sequence[Subject]) -> Iterator[str]:
    """Says which numbers of the table say less, or something else, than they seem to."""
    heads = headings(finding.name for subject in subjects for finding in subject.findings)
    for subject in subjects:
        for head in heads:
            worst = head.worst(subject.findings)
            beside = "" if worst is None else caveat(worst)
            if worst is not None and beside:
                yield f"{subject.name}: {head.title} {worst}: {beside}"


def _claims(guarantee: Guarantee) -> Iterator[str]:
    """Says what is proven of the training, of what, and whether anyone could have changed it."""
    yield f"training: {guarantee.words}, proven."
    yield from (f"assumed: {premise}" for premise in guarantee.premises)
    if guarantee.seal == "unsigned":
        yield (
            "the guarantee is unsigned: whoever held its file could have changed it (set "
            "SHIELDNET_KEY where it is written and where it is read)."
        )
    if guarantee.seal == "signed":
        yield "the signature of the guarantee was checked with the key in SHIELDNET_KEY."


def _row(subject: Subject, heads: Sequence[Heading]) -> list[str]:
    cost = subject.certificate.cost
    cells = (_cell(head, head.worst(subject.findings)) for head in heads)
    return [subject.name, rounded_up(cost.bits), rounded_up(cost.mu), *cells]


def _cell(head: Heading, worst: Finding | None) -> str:
    if worst is None:
        return "-"
    beside = head.beside(worst.name)
    return f"{worst}, {beside}" if beside else str(worst)
