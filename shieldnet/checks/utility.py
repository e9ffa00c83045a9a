"""What a shield leaves of the answers' use, and how well the leak map foretells what leaks."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import Tensor
from torch.nn.functional import cosine_similarity

from shieldnet.attacks import Game
from shieldnet.attacks.answers import Behind, in_batches
from shieldnet.attacks.positions.readings import mean_over, read, readings_of
from shieldnet.checks.retrieval import METRICS as OF_RETRIEVAL
from shieldnet.checks.retrieval import retrieval
from shieldnet.checks.values import accuracy_of_values
from shieldnet.core.statistics import Interval, mean, proportion, rank_correlation, saved_share
from shieldnet.findings.finding import Finding, NotApplicable, Threat
from shieldnet.findings.metrics import Limit, Metric

_ACCURACY = Limit(
    "min_accuracy",
    0.90,
    "How often the released answer is right.",
    is_set=True,
    helps="Compare with the accuracy of the bare model: if that meets the limit, choose a shield "
    "that releases more (--preset open); if not, improve the model.",
    helps_model="improve the model",
    helps_shield="choose a shield that releases more (--preset open)",
    needs="give nonmembers with labels",
)
_R2 = Limit(
    "min_r2",
    0.5,
    "Share of the targets' variance that the released values explain (1 is all, 0 is no more than "
    "their mean).",
    helps="Compare with R2 of the bare model: if that meets the limit, choose defenses that change "
    "values less (a smaller step, less noise, a wider range); if not, improve the model.",
    helps_model="improve the model",
    helps_shield="choose defenses that change values less (a smaller step, less noise, a wider "
    "range)",
    needs="give nonmembers with the targets of a regression",
)
_MORE = "Choose defenses that change answers less: less noise, finer steps, a wider range."
METRICS = (
    Metric("accuracy", "accuracy", "less", _ACCURACY, headline=True),
    Metric(
        "accuracy.group.*",
        "accuracy of a group",
        "less",
        replace(_ACCURACY, suggested=0.85),
        of_groups=True,
    ),
    Metric("r2", "R2", "less", _R2, headline=True),
    Metric(
        "r2.group.*",
        "R2 of a group",
        "less",
        replace(_R2, suggested=0.4),
        of_groups=True,
    ),
    Metric(
        "mae",
        "mean absolute error",
        "more",
        ungated="its unit is the target's, in which no limit fits two models: R2 is judged",
    ),
    Metric(
        "cosine",
        "cosine",
        "less",
        Limit(
            "min_cosine",
            0.80,
            "cosine of embeddings with those of the model without a shield",
            helps=_MORE,
        ),
        headline=True,
    ),
    Metric(
        "agreement",
        "agreement",
        "less",
        Limit(
            "min_agreement",
            0.95,
            "how often the answer is that of the model without a shield",
            helps=_MORE,
        ),
        headline=True,
        stands_in=True,
    ),
    *OF_RETRIEVAL,
    Metric("attribution.rank_correlation", "leak map against what was read", "neither"),
)


def utility(game: Game, untested: list[str]) -> Iterator[Finding]:
    """Counts how often the released winner is right, in each group too, and is the model's.

    Of values it measures how far they lie from the targets, and from the model's own.
    """
    if game.gives_values and game.nonmembers.labels is not None:
        yield from accuracy_of_values(game, untested)
    if game.is_vector:
        yield from _closeness(game, untested)
        return
    if game.extent is not None:
        if len(game.nonmembers) < 2:
            untested.append("accuracy: needs two nonmembers at least")
        else:
            yield from _at_positions(game)
        return
    answers = game.ask(game.nonmembers).distribution.argmax(-1)
    try:
        truth = game.labels(game.nonmembers)
        commonest = int(truth.bincount().argmax())
        yield _share_of_right("accuracy", answers, truth, commonest)
        for group in game.groups:
            if group.nonmembers.any():
                rows = group.nonmembers
                name = f"accuracy.group.{group.name}"
                yield _share_of_right(name, answers[rows], truth[rows], commonest)
    except NotApplicable as reason:
        untested.append(f"accuracy: {reason}")
    own = game.model_labels(game.nonmembers)
    yield _share_of_right("agreement", answers, own, int(own.bincount().argmax()))


def _at_positions(game: Game) -> Iterator[Finding]:
    """Counts in how many positions of an answer the winner is right, and is the model's."""
    answers = readings_of(game, game.nonmembers)
    own = read(replace(game, shield=game.shield.bare()), game.nonmembers)
    agrees = answers.winner == own.winner
    for name, right in (("accuracy", answers.right), ("agreement", agrees)):
        yield Finding.of(
            name,
            mean(mean_over(right, answers.counted), within=(0.0, 1.0)),
            samples=len(right),
            baseline=answers.most_frequent,
            threat=Threat(),
            source="the released winners of a nonmember's answer, on average",
        )


def _share_of_right(name: str, answers: Tensor, truth: Tensor, commonest: int) -> Finding:
    """Counts right answers. commonest: the most frequent class of all, which a guess would name."""
    count = len(answers)
    return Finding.of(
        name,
        proportion(int((answers == truth).sum()), count),
        samples=count,
        baseline=float((truth == commonest).double().mean()),
        threat=Threat(),
        source="the released winner on nonmembers",
    )


def _closeness(game: Game, untested: list[str]) -> Iterator[Finding]:
    """Measures what share of the model's variance, and of its directions, is still released."""
    clean = in_batches(Behind(game.shield), game.nonmembers.inputs).double()
    answers = game.ask(game.nonmembers).distribution.double()
    if game.shield.chain.layout.kind == "embeddings":
        yield Finding.of(
            "cosine",
            mean(cosine_similarity(answers, clean, dim=1), within=(-1.0, 1.0)),
            samples=len(clean),
            baseline=0.0,
            threat=Threat(),
            source="mean cosine of what is released with the model's own, on nonmembers",
        )
        # The directions of embeddings alone have a meaning: lengths are matched first.
        answers = answers * ((clean * answers).sum() / answers.square().sum().clamp_min(1e-30))
    missed = (answers - clean).square().sum(1)
    yield Finding.of(
        "agreement",
        saved_share(missed, (clean - clean.mean(0)).square().sum(1), seed=game.seed),
        samples=len(clean),
        baseline=0.0,
        threat=Threat(),
        source="share of the model's own variance that is released, on nonmembers",
    )
    if game.shield.chain.layout.kind == "embeddings":
        try:
            yield from retrieval(clean, answers)
        except NotApplicable as reason:
            untested.append(f"retrieval: {reason}")


def agreement(features: dict[str, Tensor], game: Game) -> Finding:
    """Compares the leak map with what the best decoder recovered, feature by feature."""
    varies = features["null map"].flatten() > 1e-3 * features["null map"].max()
    maps = {name: values.flatten()[varies].double() for name, values in features.items()}
    value = rank_correlation(maps["recovered"], maps["leak map"])
    count = int(varies.sum())
    if count < 4 or not math.isfinite(value):
        raise NotApplicable("needs four features that vary, and maps that do")
    # Fisher's transform; 1.06 is the variance factor for ranks (Fieller, Hartley, Pearson 1957).
    center, reach = np.arctanh(min(value, 1 - 1e-9)), 1.96 * np.sqrt(1.06 / max(count - 3, 1))
    return Finding.of(
        "attribution.rank_correlation",
        Interval(value, float(np.tanh(center - reach)), float(np.tanh(center + reach))),
        samples=count,
        baseline=rank_correlation(maps["recovered"], maps["null map"]),
        threat=Threat(auxiliary=len(game.owned()), white_box=True),
        source="Spearman of leak map and recovered share; baseline: plain variance",
    )
