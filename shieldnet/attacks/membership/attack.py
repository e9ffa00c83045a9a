"""Was this record in the training data? The worst of many attacks, with an interval for all."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.membership.embeddings import embedding_scores
from shieldnet.attacks.membership.metrics import METRICS
from shieldnet.attacks.membership.reporting import (
    MIN_DISTINCT_SHARE,
    MIN_GROUP_ROWS,
    MIN_ROWS,
    distinct_records,
    exposed_members,
    finding_of,
    of_group,
    ranked,
    reported,
    require_rates,
    require_untold,
    shared,
    within,
    worst,
)
from shieldnet.attacks.membership.residuals import ResidualComparison, quarters, residual_scores
from shieldnet.attacks.membership.scored import Scored
from shieldnet.attacks.membership.scores import (
    all_scores,
    log_probabilities,
    membership_scores,
    pooled_scores,
)
from shieldnet.core.checks import whole
from shieldnet.core.statistics import Curve, auc, roc
from shieldnet.data.examples import Group
from shieldnet.findings.finding import Finding, Outcome

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

    Embeddings have no label: records are scored by how alike copies of them are embedded, and by
    the shadows' embeddings (``embedding_scores``).

    Curves: of the attack with the greatest AUC, on records, pooled and canaries. Exposed: the
    members that it finds at the lowest false-positive rate.

    queries: answers about each record, averaged; more than one is reported as
    ``membership.averaged.N``.
    Errors: NotApplicable without labels, but of embeddings, or where members can be told without
        the model.
    NOT promised: that no attack does better; these are lower bounds.
    """

    metrics = METRICS
    needs_shadows = True
    fprs: tuple[float, ...] = (1e-2, 1e-3)
    queries: int = 1

    def __post_init__(self) -> None:
        require_rates(self.fprs)
        whole("queries", self.queries, low=1)

    def __call__(self, game: Game) -> Outcome:
        is_embedding = game.shield.chain.layout.kind == "embeddings"
        sets = game.members, game.nonmembers
        if not is_embedding:
            game.require_answers_to_labels()
            for examples in sets:
                game.labels(examples)
        game.require_rows(MIN_ROWS, *sets)
        require_untold(game)
        distinct = distinct_records(game, MIN_DISTINCT_SHARE)
        score = embedding_scores if is_embedding else all_scores
        score = residual_scores if game.gives_values else score
        scores = score(game, *sets, self.queries)
        scored = {name: within(distinct, attack) for name, attack in scores.items()}
        if self.queries > 1:
            name = f"membership.averaged.{self.queries}"
            return Outcome(findings=(worst(ranked("membership", scored), name),))
        pooled = {} if is_embedding else _pooled(game)
        parts = {"membership": scored, "membership.pooled": pooled}
        if game.canaries is not None:
            canaries = game.canaries
            parts["membership.canaries"] = score(game, canaries.planted, canaries.held_out, 1)
        findings: list[Finding] = []
        untested: list[str] = []
        if game.shadows is not None and game.shadows.weaker:
            untested.append(f"membership by shadows trained as the model was: {game.shadows.how}")
        curves: dict[str, Curve] = {}
        for prefix, attacks in parts.items():
            if attacks:
                more, missing = reported(prefix, attacks, self.fprs)
                findings, untested = findings + more, untested + missing
                strongest = attacks[more[0].source]
                curves[prefix] = roc(strongest.members, strongest.nonmembers)
        for group in game.groups:
            more, missing = of_group(group, 1 + len(game.groups), scored, self.fprs)
            findings, untested = findings + more, untested + missing
        headline = next(finding for finding in findings if finding.name == "membership.auc")
        return Outcome(
            findings=(*findings, *_worst_group(game, scored)),
            untested=tuple(untested),
            curves=curves,
            exposed=tuple(exposed_members(headline.name, scored[headline.source])),
        )


def _worst_group(game: Game, scored: Mapping[str, Scored]) -> Iterator[Finding]:
    """Reports the subgroup with the highest lower bound; all groups and attacks share the error."""
    tried = [
        (group.name, name, part)
        for group in (*game.groups, *_classes(game))
        for name, scores in scored.items()
        if (part := within(group, scores)).rows >= MIN_GROUP_ROWS
    ]
    if not tried:
        return
    confidence = shared(len(tried))
    intervals = [
        (auc(scores.members, scores.nonmembers, confidence), group, name, scores)
        for group, name, scores in tried
    ]
    interval, where, name, scores = max(intervals, key=lambda item: item[0].low)
    source = f"{name} on {where}, of {len({line[0] for line in tried})} groups"
    yield finding_of("membership.worst_group.auc", source, scores, interval)


def _pooled(game: Game) -> dict[str, Scored]:
    return pooled_scores(game, ResidualComparison) if game.gives_values else pooled_scores(game)


def _classes(game: Game) -> Iterator[Group]:
    """Yields the classes as groups, without those that are given as a group under another name."""
    for group in _every_class(game):
        if not any(_same(group, given) for given in game.groups):
            yield group


def _same(one: Group, other: Group) -> bool:
    return torch.equal(one.members, other.members) and torch.equal(one.nonmembers, other.nonmembers)


def _every_class(game: Game) -> Iterator[Group]:
    if game.gives_values:
        yield from quarters(game)
    if game.is_vector:
        return
    members, nonmembers = game.labels(game.members), game.labels(game.nonmembers)
    for label in torch.cat([members, nonmembers]).unique().tolist():
        name = game.class_names[label] if len(game.class_names) == game.classes else label
        yield Group(f"class {name}", members == label, nonmembers == label)
