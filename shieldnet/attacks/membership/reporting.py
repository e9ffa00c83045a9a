"""What scores of members and nonmembers say: the worst of all, with an interval for all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from shieldnet.attacks.base import Game
from shieldnet.attacks.membership.scored import Scored
from shieldnet.core.checks import fraction
from shieldnet.core.errors import ConfigError
from shieldnet.core.statistics import CONFIDENCE, Interval, auc, roc, rows_needed, tpr_at_fpr
from shieldnet.data.examples import Group, row_bytes
from shieldnet.findings.finding import Exposed, Finding, NotApplicable, Outcome, Threat

MIN_ROWS = 20
"""Fewer members or nonmembers than this are refused."""
MIN_GROUP_ROWS = 30
"""Groups with fewer members or nonmembers are not judged: their intervals would be too sure."""
MIN_DISTINCT_SHARE = 0.2
_OF_DISTINCT = ("membership", "membership.sequences", "membership.maps")

Reported = tuple[list[Finding], list[str]]
"""Findings, and lines on what was not tested."""


def require_rates(fprs: Sequence[float]) -> None:
    """Raises ConfigError for what are no false-positive rates, or the same one twice."""
    if len(set(fprs)) < len(fprs) or not all(0 < fraction("fprs", fpr) < 1 for fpr in fprs):
        raise ConfigError(f"Expected fprs above 0 and below 1, each once, got {fprs}.")


def require_untold(game: Game) -> None:
    """Raises NotApplicable where members differ from nonmembers without the model."""
    if game.blind is not None and game.blind.low > 0.5:
        raise NotApplicable(
            f"void, members can be told from nonmembers without the model (AUC {game.blind}): "
            "draw both at random from one pool"
        )


def reported(prefix: str, scored: Mapping[str, Scored], fprs: Sequence[float]) -> Reported:
    """Reports every attack's AUC, the worst one first, and the worst rates at low FPR."""
    each = ranked(prefix, scored)
    at_rates, untested = rates(prefix, scored, fprs)
    return [worst(each, f"{prefix}.auc"), *each.values(), *at_rates], untested


def outcome_of(
    game: Game, prefix: str, scored: Mapping[str, Scored], fprs: Sequence[float]
) -> Outcome:
    """Reports scores of distinct records, and of groups, with the curve of the worst attack."""
    kept = distinct_records(game)
    scored = {name: within(kept, scores) for name, scores in scored.items()}
    findings, untested = reported(prefix, scored, fprs)
    for group in game.groups:
        more, missing = of_group(group, 1 + len(game.groups), scored, fprs)
        findings, untested = findings + more, untested + missing
    strongest = scored[findings[0].source]
    return Outcome(
        findings=tuple(findings),
        untested=tuple(untested),
        curves={prefix: roc(strongest.members, strongest.nonmembers)},
        exposed=tuple(exposed_members(findings[0].name, strongest)),
    )


def of_group(
    group: Group, groups: int, scored: Mapping[str, Scored], fprs: Sequence[float]
) -> Reported:
    """Reports the worst attack on one of so many groups, the whole counted as one."""
    parts = {name: within(group, scores) for name, scores in scored.items()}
    enough = {name: scores for name, scores in parts.items() if scores.rows >= MIN_GROUP_ROWS}
    if not enough:
        counts = f"{int(group.members.sum())} and {int(group.nonmembers.sum())}"
        reason = f"needs {MIN_GROUP_ROWS} members and nonmembers, there are {counts}"
        return [], [f"membership of {group.name}: {reason}"]
    name = f"membership.group.{group.name}"
    at_rates, _ = rates(name, enough, fprs, groups)
    return [worst(ranked(name, enough, groups), f"{name}.auc"), *at_rates], []


def rates(
    prefix: str, scored: Mapping[str, Scored], fprs: Sequence[float], groups: int = 1
) -> Reported:
    """Reports the share of members that the best attack finds at each false-positive rate."""
    confidence = shared(groups * len(scored))
    findings: list[Finding] = []
    untested: list[str] = []
    for fpr in fprs:
        name = f"{prefix}.tpr_at_fpr_{written(fpr)}"
        each = {
            source: rate
            for source, scores in scored.items()
            if (rate := tpr_at_fpr(scores.members, scores.nonmembers, fpr, confidence))
        }
        if not each:
            most = max(len(scores.nonmembers) for scores in scored.values())
            counted = " with distinct inputs" if prefix in _OF_DISTINCT else ""
            counted = " over all shadow models" if prefix == "membership.pooled" else counted
            untested.append(
                f"{name}: needs {rows_needed(fpr)} nonmembers, there are {most}{counted}"
            )
            continue
        source, rate = max(each.items(), key=lambda item: item[1].value)
        findings.append(finding_of(name, source, scored[source], rate, baseline=fpr))
    return findings, untested


def written(rate: float) -> str:
    """Writes a rate so that it is read back the same: 1e-2, or all of its digits."""
    short = f"{rate:.0e}".replace("e-0", "e-")
    return short if float(short) == rate else repr(rate)


def ranked(prefix: str, scored: Mapping[str, Scored], groups: int = 1) -> dict[str, Finding]:
    """Returns the AUC of every attack, whose intervals hold for all at once."""
    confidence = shared(groups * len(scored))
    return {
        name: finding_of(
            f"{prefix}.{name}.auc", name, scores, auc(scores.members, scores.nonmembers, confidence)
        )
        for name, scores in scored.items()
    }


def worst(each: Mapping[str, Finding], name: str) -> Finding:
    """Returns the finding with the greatest value under another name."""
    return replace(max(each.values(), key=lambda finding: finding.value), name=name)


def distinct_records(game: Game, least_share: float = 0.0) -> Group:
    """Returns the records of both sets, each the first time that it stands there, or all.

    least_share: where fewer of a set are distinct, equal ones are different persons, and all count.
    """
    firsts = []
    for examples in (game.members, game.nonmembers):
        seen: dict[bytes, int] = {}
        places = [seen.setdefault(row, index) for index, row in enumerate(row_bytes(examples))]
        firsts.append(torch.tensor(places) == torch.arange(len(examples)))
    if any(float(first.double().mean()) < least_share for first in firsts):
        firsts = [torch.ones_like(first) for first in firsts]
    return Group("distinct records", *firsts)


def within(group: Group, scored: Scored) -> Scored:
    """Keeps the scores of one group."""
    members, nonmembers = (
        chosen[places]
        for chosen, places in zip((group.members, group.nonmembers), scored.places, strict=True)
    )
    return replace(
        scored,
        members=scored.members[members],
        nonmembers=scored.nonmembers[nonmembers],
        places=(scored.places[0][members], scored.places[1][nonmembers]),
    )


def exposed_members(name: str, scored: Scored) -> Iterator[Exposed]:
    """Lists the members that are found at the lowest false-positive rate, if any stand out."""
    ordered = scored.nonmembers.sort().values
    below = torch.searchsorted(ordered, scored.members.contiguous(), right=False)
    counts = len(ordered) - below.double()
    meaning = f"of {len(ordered)} nonmembers score as high"
    exposed = Exposed.of(name, "members", scored.places[0], scored.members, counts, meaning)
    if exposed.rows:
        yield exposed


def finding_of(
    name: str, source: str, scored: Scored, interval: Interval, baseline: float = 0.5
) -> Finding:
    """Makes a finding of one attack's scores, with how many of them differ."""
    scores = torch.cat([scored.members, scored.nonmembers])
    return Finding.of(
        name,
        interval,
        samples=len(scores),
        baseline=baseline,
        threat=Threat(scored.queries, shadows=scored.shadows),
        source=source,
        note=f"{_scores(len(scores.unique()))} of {len(scores)} rows",
    )


def _scores(count: int) -> str:
    return "1 distinct score" if count == 1 else f"{count} distinct scores"


def shared(attacks: int) -> float:
    """Returns the confidence at which each of so many intervals is taken, to hold all at once."""
    return 1 - (1 - CONFIDENCE) / attacks
