"""One limit against what was measured or is proven: what decided, by how much, what helps."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shieldnet.findings.finding import Finding, decimals, goes_by
from shieldnet.findings.metrics import OR_LABELS, RELEASE_LESS, Metric
from shieldnet.findings.reading import BY_LABEL, BY_MEAN, BY_WINNERS, caveat, group_of, guess
from shieldnet.gate.declared import PROVEN, declared
from shieldnet.privacy.certificate import Certificate
from shieldnet.privacy.cost import PrivacyCost, rounded_up
from shieldnet.privacy.guarantee import Guarantee

Outcome = Literal["pass", "fail", "inconclusive"]
Whole = Literal["pass", "fail", "inconclusive", "not judged"]
_MOST_ROWS = 10_000_000
_MANY_TIMES = 10  # more rows than there are: the estimate is close to the limit
_OF_STEPS = (
    "the guarantee covers the training steps only, not what the starting weights already knew "
    "about the records. Train with start='public' (--start public) from a fresh or public model, "
    "or with start=Guarantee"
)


@dataclass(frozen=True)
class Judgment:
    """Holds the outcome of one limit.

    words: what was judged, in a line. finding: the name of the judged finding or claim. helps: what
    can be done where the limit is not met.
    """

    limit: str
    outcome: Outcome
    words: str
    finding: str = ""
    helps: str = ""


@dataclass(frozen=True)
class Verdict:
    """Holds all judgments; its outcome is the worst of them, and it is truthy only if all pass.

    Without judgments the outcome is "not judged", which is falsy.
    notes: what the policy has no limit for, though the report states it.
    """

    judgments: tuple[Judgment, ...]
    notes: tuple[str, ...] = ()

    @property
    def broken(self) -> tuple[Judgment, ...]:
        """Returns the failed judgments, then the inconclusive ones."""
        ranked = {"fail": 0, "inconclusive": 1}
        kept = (judgment for judgment in self.judgments if judgment.outcome in ranked)
        return tuple(sorted(kept, key=lambda judgment: ranked[judgment.outcome]))

    @property
    def outcome(self) -> Whole:
        """Returns "fail" if any judgment fails, else "inconclusive" if any is, else "pass"."""
        outcomes = {judgment.outcome for judgment in self.judgments}
        ranked: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")
        return next((outcome for outcome in ranked if outcome in outcomes), "not judged")

    def __bool__(self) -> bool:
        return self.outcome == "pass"

    def __str__(self) -> str:
        lines = [f"{judgment.outcome:>12}  {judgment.words}" for judgment in self.judgments]
        return "\n".join([*lines, *(f"{'note':>12}  {note}" for note in self.notes)])

    def __repr__(self) -> str:
        lines = [
            judgment.words
            if judgment.outcome == self.outcome
            else f"{judgment.words} ({judgment.outcome})"
            for judgment in self.broken
        ]
        return f"<{self.outcome}: {'; '.join(lines)}>" if lines else f"<{self.outcome}>"


_COARSER = "Release less per answer: larger steps or a narrower range."
_NO_LESS = (
    "The shield releases labels alone already: change the model, its columns or its training."
)
_ROUNDING = 1e-9
_BY_CHANCE = ", or this is chance, in at most 1 of 2,000 sound trainings: train again to tell"
_CLOSE = dict.fromkeys(("one_run.independent.mu", "one_run.gaussian.epsilon"), _BY_CHANCE)
"""Bounds that are close to their proofs, and cross them by chance so seldom."""


def helps(judgments: Iterable[Judgment]) -> list[str]:
    """Lists what can be done about limits that are not met, each advice once with its limits.

    Advice to one shield that leaves out what another may do is the same advice.
    """
    broken = [one for one in judgments if one.helps and one.outcome != "pass"]
    said = {one.helps for one in broken}
    limits: dict[str, list[str]] = {}
    for judgment in broken:
        own = judgment.helps
        longer = (one for one in said if one != own and one.replace(OR_LABELS, "") == own)
        named = limits.setdefault(next(longer, own), [])
        named += [] if judgment.limit in named else [judgment.limit]
    return [f"{', '.join(named)}: {advice}" for advice, named in limits.items()]


def beside_bare(
    judgment: Judgment, own: Sequence[Finding], bare: Sequence[Finding], alone: Iterable[Judgment]
) -> Judgment:
    """Says what helps a limit on use, given what the bare model reaches.

    alone: how the same limits judge the bare model.
    """
    limit = declared().limit_named(judgment.limit)
    shielded, best = (_named(judgment.finding, findings) for findings in (own, bare))
    if not judgment.helps or limit is None or not limit.helps_model or not (shielded and best):
        return judgment
    same = (one for one in alone if (one.limit, one.finding) == (judgment.limit, best.name))
    if any(one.outcome == "fail" for one in same):
        advice = f"The model does not meet it without a shield either: {limit.helps_model}."
    elif decimals(best.value) > decimals(shielded.value):
        advice = f"Without a shield the model reaches {best}: {limit.helps_shield}."
    else:
        advice = f"The model reaches no more without a shield: {limit.helps_model}."
    return replace(judgment, helps=advice)


def suited(judgment: Judgment, kind: str, certificate: Certificate) -> Judgment:
    """Leaves out of what helps a limit what does not fit the shield.

    kind: of the model's answers; values and embeddings have no preset of labels. certificate: where
    an answer costs as much as a label at each position, labels alone are released.
    """
    of_labels = certificate.positions * math.log2(certificate.classes)
    advice = judgment.helps
    if kind in ("values", "embeddings"):
        advice = advice.replace(RELEASE_LESS, _COARSER).replace(OR_LABELS, "")
    elif of_labels and abs(certificate.cost.bits - of_labels) < _ROUNDING:
        advice = advice.replace(RELEASE_LESS, _NO_LESS).replace(OR_LABELS, "")
    return replace(judgment, helps=advice)


def _named(name: str, findings: Sequence[Finding]) -> Finding | None:
    return next((finding for finding in findings if finding.name == name), None)


def measured_by(limit: str, value: float, findings: Sequence[Finding]) -> Iterator[Judgment]:
    """Judges all findings that a limit on all records is about; fails where there are none."""
    metrics = declared()
    judged = metrics.judged_by(limit)
    concerned = [finding for finding in findings if metrics.find(finding.name) in judged]
    yield from each(limit, value, concerned, judged[0].name)


def each(
    limit: str, value: float, concerned: Sequence[Finding], expected: str
) -> Iterator[Judgment]:
    """Judges findings by a limit; fails where there are none. expected: what is then missing."""
    if not concerned:
        found = declared().limit_named(limit)
        needs = f". To measure it: {found.needs}" if found is not None and found.needs else ""
        message = f"{expected} was not measured; {limit} = {value:g} requires it{needs}"
        yield Judgment(limit, "fail", message, expected)
    for finding in concerned:
        yield _judge(limit, value, finding)


def no_group(limit: str, value: float, group: str, groups: Sequence[str], finding: str) -> Judgment:
    """Fails a limit on a subgroup that the report does not have. groups: those that it has."""
    there = f"It has: {', '.join(groups)}" if groups else "It has none: give --group (groups=)"
    message = f"the report has no subgroup {group}; {limit} = {value:g} is for it. {there}"
    return Judgment(limit, "fail", message, finding)


def strange(finding: Finding) -> Judgment:
    """Reports a finding that no limit can judge because no metric is declared for it."""
    message = (
        f"{finding.name} {finding}: no imported attack declares this metric, so no limit judges "
        "it. Import the attack that measured it before judging the report"
    )
    return Judgment("declared", "inconclusive", message, finding.name)


def required(name: str, findings: Sequence[Finding]) -> Judgment:
    """Judges whether a finding was measured. name: its name, or a prefix that ends in a dot."""
    if any(goes_by(finding.name, name) for finding in findings):
        return Judgment("required", "pass", f"{name} was measured, as required", name)
    message = f"{name} was not measured; it is required"
    return Judgment("required", "fail", message, name)


def proven(name: str, limit: float, cost: PrivacyCost, guarantee: Guarantee | None) -> Judgment:
    """Judges the privacy cost of one answer, or the guarantee of the training, by a limit."""
    own = next(one for one in PROVEN if one.name == name)
    if name == "max_epsilon":
        if guarantee is None:
            message = f"{name} = {limit:g}, but no guarantee of the training was given"
            return Judgment(name, "fail", message, "guarantee", own.needs)
        if guarantee.scope == "steps":
            return Judgment(name, "fail", f"{name} = {limit:g}, but {_OF_STEPS}", "guarantee")
        value, claims = guarantee.epsilon, "guarantee"
    else:
        value = cost.bits if name == "max_bits_per_answer" else cost.mu
        claims = "certificate"
    is_met = value <= limit
    states = f"{rounded_up(value)}" if math.isfinite(value) else "no bound (infinite)"
    message = f"{name} = {limit:g}, the {claims} states {states}"
    return Judgment(
        name, "pass" if is_met else "fail", message, claims, "" if is_met else own.helps
    )


def crossed(finding: Finding) -> Judgment:
    """Reports a measured lower bound above its own proven upper bound."""
    low, ceiling = _apart(finding.low, finding.ceiling or 0.0)
    message = (
        f"{finding.name}: measured at least {low}, proven at most {ceiling}: the defense, the "
        f"accountant or the attack is wrong{_CLOSE.get(finding.name, '')}"
    )
    return Judgment("proof", "fail", message, finding.name)


def _apart(low: float, ceiling: float) -> tuple[str, str]:
    """Writes a lower bound rounded down and a smaller upper bound rounded up, still apart."""
    for digits in range(3, 18):
        shown = rounded_up(-low, digits).removeprefix("-"), rounded_up(ceiling, digits)
        if float(shown[0]) > float(shown[1]):
            break
    return shown


def _judge(name: str, limit: float, finding: Finding) -> Judgment:
    least = name.startswith("min_")
    kept = finding.low >= limit if least else finding.high <= limit
    margin = limit - finding.high if least else finding.low - limit
    outcome: Outcome = "pass" if kept else "fail" if margin > 0 else "inconclusive"
    message = f"{finding.name}{_of(group_of(finding))} {finding}{_beside(finding)}"
    message += f", {name} = {limit:g}"
    if outcome == "fail":
        message += f", broken by at least {margin:.3g}"
    elif outcome == "inconclusive":
        is_met = finding.value >= limit if least else finding.value <= limit
        message += f"; {_more_rows(limit, finding, is_met=is_met)}"
    found = None if kept else declared().limit_named(name)
    return Judgment(name, outcome, message, finding.name, "" if found is None else found.helps)


def _of(group: str) -> str:
    return f" of {group}" if group else ""


def _beside(finding: Finding) -> str:
    """Returns, in brackets, what must stand beside a number: what it hides, and what guessing is.

    Guessing is said of a measure of use that is not significantly better.
    """
    words = guess(finding) if finding.low <= finding.baseline else ""
    return "".join(f" ({said})" for said in (caveat(finding), words) if said)


def _rows_of(metric: Metric, finding: Finding) -> str:
    """Says what the samples of a finding are, and of which class or subgroup."""
    group = metric.part(finding.name) if metric.of_groups else group_of(finding)
    rows = metric.rows
    together = rows.removesuffix(" together")
    return f"{together}{_of(group)}{rows[len(together) :]}"


def _more_rows(limit: float, finding: Finding, *, is_met: bool) -> str:
    """Says about how many rows would put the interval on one side of the limit.

    The width of an interval falls with the square root of the rows. is_met: by the estimate alone.
    """
    side = "meets" if is_met else "breaks"
    if caveat(finding) in (
        BY_LABEL,
        BY_MEAN,
        BY_WINNERS,
    ):  # its upper end is what was tried on them
        return f"more auxiliary records would decide; the estimate {side} the limit"
    gap = abs(finding.value - limit)
    reach = finding.high - finding.value if limit > finding.value else finding.value - finding.low
    wanted = finding.samples * (reach / gap) ** 2 if gap > 0 else math.inf
    metric = declared().find(finding.name)
    rows = "rows" if metric is None else _rows_of(metric, finding)
    if wanted > _MOST_ROWS:
        return "the estimate is too near the limit for any number of rows to decide"
    digits = 2 - len(str(int(wanted)))
    size = 10 ** max(0, -digits)
    count = f"about {math.ceil(wanted / size) * size:,} {rows} would decide"
    near = ", but is close to it" if wanted > _MANY_TIMES * finding.samples else ""
    return f"{count}, instead of {finding.samples:,}; the estimate {side} the limit{near}"
