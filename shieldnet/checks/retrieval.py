"""Whether a search among released embeddings still finds what it would find among the bare ones."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from shieldnet.core.statistics import Interval, mean
from shieldnet.findings.finding import Finding, NotApplicable, Threat
from shieldnet.findings.metrics import Limit, Metric

NEIGHBORS = 10
"""Neighbors of each row that are looked for."""
_MAX_ROWS = 1000
_DIGITS = 9  # decimals of a cosine: below them equal vectors differ by rounding
METRICS = (
    Metric(
        "retrieval.recall",
        f"recall at {NEIGHBORS}",
        "less",
        Limit(
            "min_recall",
            0.70,
            f"of embeddings, how many of the {NEIGHBORS} nearest neighbors without a shield are "
            "still among as many behind it",
            helps="Choose defenses that change answers less: less noise, or finer steps.",
        ),
        headline=True,
    ),
    Metric(
        "retrieval.rank_correlation",
        "rank correlation of similarities",
        "less",
        ungated="what a search finds is judged, as retrieval.recall",
    ),
)


def retrieval(clean: Tensor, answers: Tensor) -> Iterator[Finding]:
    """Compares the neighbors of every row, by cosine, before and behind the shield.

    Ties count as if they were broken at random. Shapes: clean and answers (rows, dimensions).
    Errors: NotApplicable for fewer than twice as many rows as neighbors.
    """
    count = min(len(clean), _MAX_ROWS)
    if count < 2 * NEIGHBORS:
        raise NotApplicable(f"needs at least {2 * NEIGHBORS} nonmembers, got {count}")
    bare, released = (_similarities(rows[:count]) for rows in (clean, answers))
    baseline = NEIGHBORS / (count - 1)
    source = f"{count} nonmembers by cosine, beside the model's own embeddings"
    recall = mean(_recalled(bare, released), within=(0.0, 1.0))
    yield _finding("retrieval.recall", recall, count, baseline, source)
    order = mean(_rank_correlations(bare, released), within=(-1.0, 1.0))
    yield _finding("retrieval.rank_correlation", order, count, 0.0, source)


def _similarities(rows: Tensor) -> Tensor:
    """Returns cosines between different rows. Shapes: (n, d) -> (n, n - 1) float64."""
    unit = normalize(rows.double(), dim=1)
    count = len(unit)
    others = ~torch.eye(count, dtype=torch.bool)
    cosines: Tensor = (unit @ unit.T)[others].reshape(count, count - 1)
    return cosines.round(decimals=_DIGITS)


def _recalled(bare: Tensor, released: Tensor) -> Tensor:
    """Returns the share of each row's neighbors that are found again. Shapes: -> (n,)."""
    wanted = bare.topk(NEIGHBORS, 1).indices
    edge = released.topk(NEIGHBORS, 1).values[:, -1:]
    above, tied = released > edge, released == edge
    left = (NEIGHBORS - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)
    chance: Tensor = above.double() + tied * left
    return chance.gather(1, wanted).mean(1)


def _rank_correlations(bare: Tensor, released: Tensor) -> Tensor:
    """Returns Spearman's correlation in each row, 0 where one is constant. Shapes: -> (n,)."""
    ranks = [_midranks(rows) for rows in (bare, released)]
    centered = [rank - rank.mean(1, keepdim=True) for rank in ranks]
    lengths = centered[0].norm(dim=1) * centered[1].norm(dim=1)
    correlations: Tensor = (centered[0] * centered[1]).sum(1) / lengths.clamp_min(1e-30)
    return correlations


def _midranks(rows: Tensor) -> Tensor:
    """Ranks the numbers of each row, ties in the middle. Shapes: (n, m) -> the same."""
    ordered = rows.sort(1).values
    below, up_to = (torch.searchsorted(ordered, rows, right=right) for right in (False, True))
    return (below + up_to).double()


def _finding(name: str, interval: Interval, rows: int, baseline: float, source: str) -> Finding:
    return Finding.of(
        name, interval, samples=rows, baseline=baseline, threat=Threat(), source=source
    )
