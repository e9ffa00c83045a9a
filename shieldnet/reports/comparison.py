"""Does this release leak significantly more than the last?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shieldnet.core.errors import DataError, PolicyFailed, PolicyInconclusive
from shieldnet.core.statistics import CONFIDENCE, normal_quantile
from shieldnet.findings.finding import Finding
from shieldnet.gate.declared import declared
from shieldnet.privacy.cost import PrivacyCost, rounded_up
from shieldnet.reports.report import Report, published_twice
from shieldnet.reports.subject import Subject

_ROUNDING = 1e-9
NO_LONGER = "no longer measured"
Direction = Literal["worse", "better", "no significant difference", "not comparable"]


@dataclass(frozen=True)
class Difference:
    """Holds how far one finding moved, with an interval that holds for all findings at once."""

    shield: str
    name: str
    before: str
    after: str
    change: float
    low: float
    high: float
    direction: Direction

    def __str__(self) -> str:
        change = f"{self.change:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"
        is_number = self.direction != "not comparable" and math.isfinite(self.change)
        shown = f" ({change})" if is_number else ""
        return f"{self.shield}: {self.name} {self.before} -> {self.after}{shown}"


@dataclass(frozen=True)
class Comparison:
    """Holds all differences between two reports. It is true where nothing is worse or missing."""

    differences: tuple[Difference, ...]
    caveats: tuple[str, ...]

    @property
    def outcome(self) -> Literal["pass", "fail", "inconclusive"]:
        """Returns fail if anything is worse, else inconclusive if anything is not comparable."""
        directions = {difference.direction for difference in self.differences}
        if "worse" in directions:
            return "fail"
        return "inconclusive" if "not comparable" in directions else "pass"

    def __bool__(self) -> bool:
        return self.outcome == "pass"

    def require(self) -> None:
        """Returns if nothing is worse; raises PolicyFailed or PolicyInconclusive with what is."""
        if self.outcome == "fail":
            raise PolicyFailed(f"This release is worse than the last:\n{self}")
        if self.outcome == "inconclusive":
            raise PolicyInconclusive(f"{self.missing}:\n{self}")

    def __str__(self) -> str:
        ranked: tuple[Direction, ...] = ("worse", "not comparable", "better")
        lines = [
            f"{direction:>14}  {difference}"
            for direction in ranked
            for difference in self.differences
            if difference.direction == direction
        ]
        none: Direction = "no significant difference"
        same = sum(difference.direction == none for difference in self.differences)
        others = f"Findings without a significant difference: {same}."
        return "\n".join([*lines, others, *self.caveats])

    @property
    def missing(self) -> str:
        """Says why nothing passes though nothing is worse, or nothing."""
        absent = [one for one in self.differences if one.direction == "not comparable"]
        gone = sum(one.after == NO_LONGER for one in absent)
        new = len(absent) - gone
        parts = [
            f"{gone} {'finding is' if gone == 1 else 'findings are'} no longer measured"
            if gone
            else "",
            f"{new} {'shield is' if new == 1 else 'shields are'} new" if new else "",
        ]
        why = " and ".join(part for part in parts if part)
        return (
            f"Nothing is significantly worse, but {why}, so that this cannot be ruled out (exit "
            "code 3). If a stricter shield leaves nothing to measure, or the shield is meant to be "
            "new, take the new report as the last one"
        )


def compare(before: Report | str | Path, after: Report | str | Path) -> Comparison:
    """Compares two reports, shield by shield of the same name, or the ones to be released.

    Every finding that tells leakage or use is compared, with an interval for the difference; the
    intervals hold for all at once (Bonferroni), so that a long list raises no false alarm. What
    was measured before and is not any more is not comparable, and neither is a shield that is new:
    what is not comparable never passes. (A shield that releases labels alone states no confidence,
    whose calibration is then left out.) Privacy costs and the training's epsilon are proven: any
    rise is worse.

    The two audits are taken for independent. Where they share data, as two releases audited on
    the same sets do, the true interval is narrower: real differences may be missed, chance is
    mistaken for one more seldom than 1 time in 20.
    Source: differences of proportions from their intervals, Newcombe 1998, method 10; for other
    measures Zou and Donner 2008.
    Errors: DataError for files that are no reports.
    """
    old, new = (
        report if isinstance(report, Report) else Report.load(report) for report in (before, after)
    )
    pairs = list(_pairs(old, new))
    if not pairs:
        raise DataError("The two reports have no shield in common, and one of them has none.")
    findings = [
        (name, *matched) for name, former, latter in pairs for matched in _matched(former, latter)
    ]
    measured = sum(new_finding is not None for _, _, new_finding in findings)
    shared = normal_quantile(1 - (1 - CONFIDENCE) / max(1, measured))
    widening = shared / normal_quantile(CONFIDENCE)
    differences = [_difference(*finding, widening) for finding in findings]
    for name, former, latter in pairs:
        differences += _costs(name, former.certificate.cost, latter.certificate.cost)
    differences += _epsilons(old, new)
    differences += _run_twice(old, new)
    differences += _newcomers(new, pairs)
    return Comparison(tuple(differences), tuple(_caveats(old, new)))


def _pairs(old: Report, new: Report) -> Iterator[tuple[str, Subject, Subject]]:
    named = {subject.name: subject for subject in new.released}
    shared = [subject for subject in old.released if subject.name in named]
    if shared:
        yield from ((subject.name, subject, named[subject.name]) for subject in shared)
    elif old.released and new.released:
        former, latter = old.released[-1], new.released[-1]
        yield f"{former.name} -> {latter.name}", former, latter


def _newcomers(new: Report, pairs: Sequence[tuple[str, Subject, Subject]]) -> Iterator[Difference]:
    """Lists shields of the new report that are compared with nothing."""
    compared = {latter.name for _, _, latter in pairs}
    for subject in new.released:
        if subject.name not in compared:
            absent = "not in the last report", "new", math.nan, math.nan, math.nan
            yield Difference(subject.name, "the shield", *absent, "not comparable")


def _matched(old: Subject, new: Subject) -> Iterator[tuple[Finding, Finding | None]]:
    by_name = {finding.name: finding for finding in new.findings}
    for finding in old.findings:
        is_gone = finding.name not in by_name and _needs_confidence(finding.name)
        if _sign(finding.name) and not (is_gone and _gives_labels_alone(new)):
            yield finding, by_name.get(finding.name)


def _needs_confidence(name: str) -> bool:
    metric = declared().find(name)
    return metric is not None and metric.needs_confidence


def _gives_labels_alone(subject: Subject) -> bool:
    """Returns whether an answer is proven to tell no more than a label: it states no confidence."""
    certificate = subject.certificate
    return certificate.cost.bits <= math.log2(certificate.classes) + _ROUNDING


def _sign(name: str) -> int:
    """Returns 1 where more is worse, -1 where less is, 0 for what is not compared.

    What no limit judges is left out: the worst of many attacks is there, and each more comparison
    would hide a little more of the others.
    """
    metric = declared().find(name)
    if metric is None or metric.limit is None:
        return 0
    return 1 if metric.worse == "more" else -1


def _difference(shield: str, old: Finding, new: Finding | None, widening: float) -> Difference:
    if new is None:
        absent: Direction = "not comparable"
        return Difference(
            shield, old.name, str(old), NO_LONGER, math.nan, math.nan, math.nan, absent
        )
    change = new.value - old.value
    reach_down = math.hypot(new.value - new.low, old.high - old.value)
    reach_up = math.hypot(new.high - new.value, old.value - old.low)
    low, high = change - widening * reach_down, change + widening * reach_up
    sign = _sign(old.name)
    direction: Direction = "no significant difference"
    if low > 0:
        direction = "worse" if sign > 0 else "better"
    elif high < 0:
        direction = "better" if sign > 0 else "worse"
    return Difference(shield, old.name, str(old), str(new), change, low, high, direction)


def _costs(shield: str, old: PrivacyCost, new: PrivacyCost) -> Iterator[Difference]:
    for name in ("bits", "mu"):
        yield from _proven(shield, f"{name} per answer", getattr(old, name), getattr(new, name))


def _epsilons(old: Report, new: Report) -> Iterator[Difference]:
    if old.guarantee is None and new.guarantee is None:
        return
    yield from _proven("training", "epsilon", _epsilon_of_weights(old), _epsilon_of_weights(new))


def _epsilon_of_weights(report: Report) -> float:
    claimed = report.guarantee
    return math.inf if claimed is None or claimed.scope == "steps" else claimed.epsilon


def _run_twice(old: Report, new: Report) -> Iterator[Difference]:
    """Yields a difference for the worse where two models come of one run of training."""
    first, second = old.guarantee, new.guarantee
    if first is None or second is None or not first.run:
        return
    if first.run == second.run and first.weights != second.weights:
        shown = "one model", f"two models, which {published_twice(first.run)}"
        yield Difference("training", "models of one run:", *shown, 1.0, 1.0, 1.0, "worse")


def _proven(shield: str, name: str, old: float, new: float) -> Iterator[Difference]:
    if old == new:  # two infinities too
        return
    change = new - old
    direction: Direction = "worse" if change > 0 else "better"
    shown = rounded_up(old), rounded_up(new)
    yield Difference(shield, f"{name}, proven,", *shown, change, change, change, direction)


def _caveats(old: Report, new: Report) -> Iterator[str]:
    names = [{subject.name for subject in report.released} for report in (old, new)]
    if names[0] & names[1] and names[0] != names[1]:
        yield f"Only in one of the reports: {', '.join(sorted(names[0] ^ names[1]))}."
    for name in ("nonmembers", "members", "auxiliary"):
        one, other = (report.hashes.get(name, "") for report in (old, new))
        if one != other:
            records = f"{name} records" if name == "auxiliary" else name
            yield (
                f"The {records} differ, so a difference may come from the data, not from the model."
            )
    known = declared()
    measured = {finding.name for report in (old, new) for finding in report.findings}
    if strange := sorted(name for name in measured if known.find(name) is None):
        yield f"Not compared, because no imported attack declares them: {', '.join(strange)}."
    for name in ("tier", "shieldnet"):
        one, other = (report.environment.get(name, "?") for report in (old, new))
        if one != other:
            yield f"The audits differ ({name} {one}, then {other}); stronger attacks find more."
