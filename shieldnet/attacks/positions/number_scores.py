"""Was this image in the training data? What its boxes' numbers tell, learned on other images."""

import torch
from torch import Tensor

from shieldnet.attacks.positions.box_numbers import readings_of_numbers

_KEPT = 8  # numbers that tell the most of the records that are known
_LEAST_DEVIATION = 1e-6


def learned_scores(members: Tensor, nonmembers: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Scores each half of the records by the numbers that tell members in the other half.

    The adversary knows of half of the records whether they are members. It sums the eight numbers
    with the largest t statistics there, weighted by these; scores are ranks within a half.
    Shapes: numbers (m, WIDTH), (n, WIDTH) -> (m,), (n,) float64.
    """
    read = readings_of_numbers(torch.cat([members, nonmembers])).double()
    is_member = torch.arange(len(read)) < len(members)
    generator = torch.Generator().manual_seed(seed)
    is_first = torch.zeros(len(read), dtype=torch.bool)
    for part in (is_member.nonzero().flatten(), (~is_member).nonzero().flatten()):
        order = torch.randperm(len(part), generator=generator)
        is_first[part[order[: len(part) // 2]]] = True
    scores = torch.zeros(len(read)).double()
    for known in (is_first, ~is_first):
        weights = _weights(read[known], is_member[known])
        scores[~known] = _ranks(read[~known] @ weights)
    return scores[is_member], scores[~is_member]


def _weights(known: Tensor, is_member: Tensor) -> Tensor:
    """Shapes: (rows, numbers), (rows,) -> (numbers,)."""
    one, other = known[is_member], known[~is_member]
    spread = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    deviation = known.std(0)
    apart = one.mean(0) - other.mean(0)
    least = _LEAST_DEVIATION * (1 + known.abs().amax(0))
    told = torch.where(deviation > least, apart / spread.maximum(least), 0.0).clamp(-100, 100)
    kept = torch.zeros_like(told)
    places = told.abs().topk(min(_KEPT, len(told))).indices
    kept[places] = told[places] / deviation[places].clamp_min(1e-30)
    return kept


def _ranks(values: Tensor) -> Tensor:
    """Returns the share of values below each, ties counted by half. Shapes: (rows,) -> same."""
    ordered = values.sort().values
    low = torch.searchsorted(ordered, values, right=False)
    high = torch.searchsorted(ordered, values, right=True)
    return (low + high).double() / (2 * len(values))
