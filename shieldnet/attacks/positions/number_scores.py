"""Was this image in the training data? What its boxes' numbers tell, learned on other images."""

import torch
from torch import Tensor

from shieldnet.attacks.positions.box_numbers import readings_of_numbers
from shieldnet.core.statistics import midranks

_KEPT = 8  # numbers that tell the most of the records that are known
_LEAST_DEVIATION = 1e-6
_BINS = 8


def learned_scores(
    members: Tensor, nonmembers: Tensor, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Scores each half of the records by the numbers that tell members in the other half.

    The adversary knows of half of the records whether they are members, and takes the eight numbers
    that tell the most there: by their means (sums of numbers, weighted by t statistics), and by how
    often each range or kind of value occurs among members (sums of log likelihood ratios). Scores
    are ranks within a half.
    Shapes: numbers (m, WIDTH), (n, WIDTH) -> each (m,), (n,) float64.
    """
    read = readings_of_numbers(torch.cat([members, nonmembers])).double()
    is_member = torch.arange(len(read)) < len(members)
    generator = torch.Generator().manual_seed(seed)
    is_first = torch.zeros(len(read), dtype=torch.bool)
    for part in (is_member.nonzero().flatten(), (~is_member).nonzero().flatten()):
        order = torch.randperm(len(part), generator=generator)
        is_first[part[order[: len(part) // 2]]] = True
    scored = {name: torch.zeros(len(read)).double() for name in _WAYS}
    for known in (is_first, ~is_first):
        for name, score in _WAYS.items():
            told = score(read[known], is_member[known], read[~known])
            scored[name][~known] = midranks(told)
    return {name: (scores[is_member], scores[~is_member]) for name, scores in scored.items()}


def _by_means(known: Tensor, is_member: Tensor, unseen: Tensor) -> Tensor:
    """Shapes: (rows, numbers), (rows,), (others, numbers) -> (others,)."""
    return unseen @ _weights(known, is_member)


def _by_kinds(known: Tensor, is_member: Tensor, unseen: Tensor) -> Tensor:
    """Reads each number by which eighth of the known ones it lies in, categories as they are.

    Shapes: (rows, numbers), (rows,), (others, numbers) -> (others,).
    """
    inner = torch.arange(1, _BINS).double() / _BINS
    edges = known.quantile(inner, dim=0).T.contiguous()
    bins, asked = (torch.searchsorted(edges, rows.T.contiguous()) for rows in (known, unseen))
    one, other = (
        torch.stack([(bins[:, own] == place).sum(1) for place in range(_BINS)], 1) + 0.5
        for own in (is_member, ~is_member)
    )
    one, other = (counts / counts.sum(1, keepdim=True) for counts in (one, other))
    ratios = (one / other).log()
    told = ((one - other) * ratios).sum(1)
    places = told.topk(min(_KEPT, len(told))).indices
    return ratios[places].gather(1, asked[places]).sum(0)


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


_WAYS = {"numbers of boxes": _by_means, "kinds of numbers of boxes": _by_kinds}
