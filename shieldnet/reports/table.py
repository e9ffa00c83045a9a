"""The headline table of a report, and the notes under it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from shieldnet.findings.finding import Finding
from shieldnet.findings.metrics import Metric
from shieldnet.findings.reading import caveat
from shieldnet.gate.declared import declared
from shieldnet.privacy.cost import rounded_up
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.reports.subject import Subject
from shieldnet.reports.untested import parted, untested_lines

ARROWS = "↓ lower is better, ↑ higher is better"


@dataclass(frozen=True)
class Heading:
    """Heads the column of one metric, or of one column that was asked for.

    name: of the finding; "" for the highest of all findings of the metric.
    """

    title: str
    metric: Metric
    name: str = ""

    def heads(self, finding: str) -> bool:
        """Returns whether a finding of this name stands under it."""
        if self.name:
            return finding == self.name
        return self.metric.matches(finding) and declared().find(finding) == self.metric

    @property
    def directed(self) -> str:
        """Returns the title with an arrow towards what is better."""
        return f"{self.title} {self.metric.arrow}".rstrip()


def headings(names: Iterable[str]) -> tuple[Heading, ...]:
    """Returns the headings for findings of these names, in reading order."""
    found = list(dict.fromkeys(names))
    metrics = declared()
    heads: list[Heading] = []
    for metric in metrics.headlines(found):
        if "{}" not in metric.title:
            heads.append(Heading(metric.title, metric))
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


def notes_of(subjects: Sequence[Subject], kind: str, guarantee: Guarantee | None) -> list[str]:
    """Returns what the table needs said under it: how to read it, and what was not tested."""
    could, other = parted(untested_lines(subjects))
    more = "thing does" if len(other) == 1 else "things do"
    rest = f"{len(other)} more {more} not apply here or cannot be seen from answers: the page lists"
    return [
        *_reading(kind),
        *_caveats(subjects),
        *([] if guarantee is None else _claims(guarantee)),
        *(f"not tested: {line}" for line in could),
        *([f"not tested: {rest} {'it' if len(other) == 1 else 'them'}"] if other else []),
    ]


def _reading(kind: str) -> tuple[str, ...]:
    """Says how the table of a model's kind is read."""
    nothing = "the mean input" if kind in ("values", "embeddings") else "the label"
    return (
        "bits, mu: proven upper bounds per answer. The rest: measured lower bounds, with 95% "
        f"intervals. {ARROWS}.",
        f"leakage: 0 = no more than {nothing}, 1 = the whole input. re-identified: the right "
        "record is found in a gallery. membership AUC: 0.5 is guessing.",
    )


def _caveats(subjects: Sequence[Subject]) -> Iterator[str]:
    """Says which numbers of the table say less, or something else, than they seem to."""
    heads = headings(finding.name for subject in subjects for finding in subject.findings)
    for subject in subjects:
        for head in heads:
            worst = _worst(subject, head)
            beside = "" if worst is None else caveat(worst.low, worst.high, worst.note)
            if worst is not None and beside:
                yield f"{subject.name}: {head.title} {worst}: {beside}"


def _claims(guarantee: Guarantee) -> Iterator[str]:
    """Says what is proven of the training, of what, and whether anyone could have changed it."""
    yield f"training: {guarantee.words}, proven."
    yield from (f"taken for granted: {premise}" for premise in guarantee.premises)
    if guarantee.seal == "unsigned":
        yield (
            "the guarantee is unsigned: whoever held its file could have changed it (set "
            "SHIELDNET_KEY where it is written and where it is read)."
        )


def _row(subject: Subject, heads: Sequence[Heading]) -> list[str]:
    cost = subject.certificate.cost
    found = (_worst(subject, head) for head in heads)
    cells = ("-" if worst is None else str(worst) for worst in found)
    return [subject.name, rounded_up(cost.bits), rounded_up(cost.mu), *cells]


def _worst(subject: Subject, head: Heading) -> Finding | None:
    measured = [finding for finding in subject.findings if head.heads(finding.name)]
    return max(measured, key=lambda finding: finding.value, default=None)
