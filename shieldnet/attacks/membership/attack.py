"""Was this record in the training data? The worst of many attacks, with an interval for all."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.membership.metrics import METRICS
from shieldnet.attacks.membership.scores import (
    Scored,
    all_scores,
    log_probabilities,
    membership_scores,
    pooled_scores,
)
from shieldnet.core.checks import fraction, whole
from shieldnet.core.errors import ConfigError
from shieldnet.core.statistics import CONFIDENCE, Curve, Interval, auc, roc, rows_needed, tpr_at_fpr
from shieldnet.data.examples import Group, row_bytes
from shieldnet.findings.finding import Exposed, Finding, NotApplicable, Outcome, Threat

MIN_ROWS = 20
"""Fewer members or nonmembers than this are refused."""
MIN_GROUP_ROWS = 30
"""Groups with fewer members or nonmembers are not judged: their intervals would be too sure."""
_MIN_DISTINCT_SHARE = 0.2

__all__ = ["MIN_ROWS", "Membership", "log_probabilities", "membership_scores"]


@dataclass(frozen=True)
class Membership(Attack):
    """Scores every record by the answers about it and its true label; members score higher.

    ``scores`` chooses what runs: thresholds on loss and entropy, label-only answers to perturbed
    copies, quantile regression, and where the game has shadows, LiRA, RMIA, ratios of symbols, an
    ensemble, and a cascade of those that were trained in stages. Shadows' scores pass through the
    same defenses with as many queries. All are reported, each with how many of its scores differ,
    and the worst as ``membership.auc`` and ``membership.tpr_at_fpr_...``: its intervals are widened
    to hold for all at once (Bonferroni), because it was chosen. Records that are in a set more than
    once count once: they are no independent trials. Where fewer than a fifth of the rows are
    distinct, they are of few categories; equal ones are different persons then, and all count.

    ``membership.worst_group.auc``: the class or given group with the highest lower bound, among
    all attacks and groups at once. ``membership.group.<name>...``: the worst attack on each given
    group, whose interval holds for all attacks and given groups at once.
    ``membership.canaries...``: the same attacks on records planted to be found.
    ``membership.pooled...``: on shadows set aside as further targets, where they were trained like
    the target: what the training does, beyond this one model.

    Curves: of the attack with the greatest AUC, on records, pooled and canaries. Exposed: the
    members that it finds at the lowest false-positive rate.

    queries: answers about each record, averaged; more than one is reported as
    ``membership.averaged.N``.
    Errors: NotApplicable without labels, or where members can be told without the model.
    NOT promised: that no attack does better; these are lower bounds.
    """

    metrics = METRICS
    needs_shadows = True
    fprs: tuple[float, ...] = (1e-2, 1e-3)
    queries: int = 1

    def __post_init__(self) -> None:
        if len(set(self.fprs)) < len(self.fprs) or not all(
            0 < fraction("fprs", fpr) < 1 for fpr in self.fprs
        ):
            raise ConfigError(f"Expected fprs above 0 and below 1, each once, got {self.fprs}.")
        whole("queries", self.queries, low=1)

    def __call__(self, game: Game) -> Outcome:
        game.require_classes()
        sets = game.members, game.nonmembers
        for examples in sets:
            game.labels(examples)
        game.require_rows(MIN_ROWS, *sets)
        if game.blind is not None and game.blind.low > 0.5:
            raise NotApplicable(
                f"void, members can be told from nonmembers without the model (AUC {game.blind}): "
                "draw both at random from one pool"
            )
        distinct = _distinct(game)
        scores = all_scores(game, game.members, game.nonmembers, self.queries)
        scored = {name: _within(distinct, attack) for name, attack in scores.items()}
        if self.queries > 1:
            name = f"membership.averaged.{self.queries}"
            worst = _worst(_ranked("membership", scored), name)
            return Outcome(findings=(worst,))
        parts = {"membership": scored, "membership.pooled": pooled_scores(game)}
        if game.canaries is not None:
            canaries = game.canaries
            parts["membership.canaries"] = all_scores(game, canaries.planted, canaries.held_out, 1)
        findings: list[Finding] = []
        untested: list[str] = []
        if game.shadows is not None and game.shadows.weaker:
            untested.append(f"membership by shadows trained as the model was: {game.shadows.how}")
        curves: dict[str, Curve] = {}
        for prefix, attacks in parts.items():
            if attacks:
                more, missing = self._reported(prefix, attacks)
                findings, untested = findings + more, untested + missing
                strongest = attacks[more[0].source]
                curves[prefix] = roc(strongest.members, strongest.nonmembers)
        for group in game.groups:
            more, missing = self._of_group(group, 1 + len(game.groups), scored)
            findings, untested = findings + more, untested + missing
        worst = next(finding for finding in findings if finding.name == "membership.auc")
        return Outcome(
            findings=(*findings, *_worst_group(game, scored)),
            untested=tuple(untested),
            curves=curves,
            exposed=tuple(_exposed(worst.name, scored[worst.source])),
        )

    def _of_group(
        self, group: Group, groups: int, scored: Mapping[str, Scored]
    ) -> tuple[list[Finding], list[str]]:
        """Reports the worst attack on one of so many groups, the whole counted as one."""
        within = {name: _within(group, scores) for name, scores in scored.items()}
        enough = {name: scores for name, scores in within.items() if scores.rows >= MIN_GROUP_ROWS}
        if not enough:
            counts = f"{int(group.members.sum())} and {int(group.nonmembers.sum())}"
            reason = f"needs {MIN_GROUP_ROWS} members and nonmembers, there are {counts}"
            return [], [f"membership of {group.name}: {reason}"]
        name = f"membership.group.{group.name}"
        rates, _ = self._rates(name, enough, groups)
        return [_worst(_ranked(name, enough, groups), f"{name}.auc"), *rates], []

    def _reported(
        self, prefix: str, scored: Mapping[str, Scored]
    ) -> tuple[list[Finding], list[str]]:
        """Reports every attack's AUC, the worst one first, and the worst rates at low FPR."""
        ranked = _ranked(prefix, scored)
        rates, untested = self._rates(prefix, scored)
        return [_worst(ranked, f"{prefix}.auc"), *ranked.values(), *rates], untested

    def _rates(
        self, prefix: str, scored: Mapping[str, Scored], groups: int = 1
    ) -> tuple[list[Finding], list[str]]:
        confidence = _shared(groups * len(scored))
        findings: list[Finding] = []
        untested: list[str] = []
        for fpr in self.fprs:
            name = f"{prefix}.tpr_at_fpr_{_written(fpr)}"
            rates = {
                source: rate
                for source, scores in scored.items()
                if (rate := tpr_at_fpr(scores.members, scores.nonmembers, fpr, confidence))
            }
            if not rates:
                most = max(len(scores.nonmembers) for scores in scored.values())
                counted = "" if prefix != "membership" else " with distinct inputs"
                untested.append(
                    f"{name}: needs {rows_needed(fpr)} nonmembers, there are {most}{counted}"
                )
                continue
            source, rate = max(rates.items(), key=lambda item: item[1].value)
            findings.append(_finding(name, source, scored[source], rate, baseline=fpr))
        return findings, untested


def _written(rate: float) -> str:
    """Writes a rate so that it is read back the same: 1e-2, or all of its digits."""
    short = f"{rate:.0e}".replace("e-0", "e-")
    return short if float(short) == rate else repr(rate)


def _ranked(prefix: str, scored: Mapping[str, Scored], groups: int = 1) -> dict[str, Finding]:
    confidence = _shared(groups * len(scored))
    return {
        name: _finding(
            f"{prefix}.{name}.auc", name, scores, auc(scores.members, scores.nonmembers, confidence)
        )
        for name, scores in scored.items()
    }


def _worst(ranked: Mapping[str, Finding], name: str) -> Finding:
    return replace(max(ranked.values(), key=lambda finding: finding.value), name=name)


def _worst_group(game: Game, scored: Mapping[str, Scored]) -> Iterator[Finding]:
    """Reports the subgroup with the highest lower bound; all groups and attacks share the error."""
    tried = [
        (group.name, name, within)
        for group in (*_classes(game), *game.groups)
        for name, scores in scored.items()
        if (within := _within(group, scores)).rows >= MIN_GROUP_ROWS
    ]
    if not tried:
        return
    confidence = _shared(len(tried))
    intervals = [
        (auc(scores.members, scores.nonmembers, confidence), group, name, scores)
        for group, name, scores in tried
    ]
    interval, where, name, scores = max(intervals, key=lambda item: item[0].low)
    source = f"{name} on {where}, of {len({line[0] for line in tried})} groups"
    yield _finding("membership.worst_group.auc", source, scores, interval)


def _distinct(game: Game) -> Group:
    """Returns the records of both sets, each the first time that it stands there, or all."""
    firsts = []
    for examples in (game.members, game.nonmembers):
        seen: dict[bytes, int] = {}
        places = [seen.setdefault(row, index) for index, row in enumerate(row_bytes(examples))]
        firsts.append(torch.tensor(places) == torch.arange(len(examples)))
    if any(float(first.double().mean()) < _MIN_DISTINCT_SHARE for first in firsts):
        firsts = [torch.ones_like(first) for first in firsts]
    return Group("distinct records", *firsts)


def _within(group: Group, scored: Scored) -> Scored:
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


def _exposed(name: str, scored: Scored) -> Iterator[Exposed]:
    """Lists the members that are found at the lowest false-positive rate, if any stand out."""
    ordered = scored.nonmembers.sort().values
    below = torch.searchsorted(ordered, scored.members.contiguous(), right=False)
    counts = len(ordered) - below.double()
    meaning = f"of {len(ordered)} nonmembers score as high"
    exposed = Exposed.of(name, "members", scored.places[0], scored.members, counts, meaning)
    if exposed.rows:
        yield exposed


def _classes(game: Game) -> Iterator[Group]:
    members, nonmembers = game.labels(game.members), game.labels(game.nonmembers)
    for label in torch.cat([members, nonmembers]).unique().tolist():
        name = game.class_names[label] if game.class_names else label
        yield Group(f"class {name}", members == label, nonmembers == label)


def _finding(
    name: str, source: str, scored: Scored, interval: Interval, baseline: float = 0.5
) -> Finding:
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


def _shared(attacks: int) -> float:
    """Returns the confidence at which each of so many intervals is taken, to hold all at once."""
    return 1 - (1 - CONFIDENCE) / attacks
