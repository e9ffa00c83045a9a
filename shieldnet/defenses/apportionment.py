"""Integer ticks shared out in proportion to probabilities, by largest remainders.

Probabilities are truncated to integer multiples of 2^-30 first. The rest is integer arithmetic,
where neither an order of additions nor rounding can change a result: equal probabilities get the
same ticks alone and in any batch, from numpy, torch, a compiler or another runtime.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shieldnet.defenses.named import (
    UNIT,
    Array,
    Arrays,
    Lookup,
    at_hand,
    least,
    left_of,
    quotient,
    row_of,
    tables,
    taken,
    where,
    whole_part,
    whole_quotient,
    with_logs,
)

_MAX_COMPARED = 8  # entries up to which all are compared with all
_MAX_PLAIN = 32  # entries of all rows together up to which Python's own numbers are the quickest
_PIECE = 2**17  # numbers that are cut at once: they stay in the processor's cache
_MAX_TABLE = 10_000  # ticks up to which the values of all counts are kept in a table


def total_weight(probabilities: Tensor) -> Array:
    """Adds the weights of each row, exactly in any order. Shapes: (..., K) -> (..., 1) int64."""
    rows = at_hand(probabilities)
    if isinstance(rows, Tensor):
        cut = (rows * UNIT).floor()
        return whole_part(cut.sum(-1, keepdim=True, dtype=torch.float64))
    flat = rows.reshape(-1, rows.shape[-1])
    totals = np.empty((len(flat), 1), dtype=np.int64)
    step = max(1, _PIECE // flat.shape[-1])
    for start in range(0, len(flat), step):
        cut = torch.from_numpy(flat[start : start + step]).mul(UNIT).floor_()
        sums = cut.sum(-1, keepdim=True, dtype=torch.float64)
        totals[start : start + step] = sums.numpy()
    return totals.reshape(*rows.shape[:-1], 1)


def rest_of(weights: Array, others: int) -> Array:
    """Returns the weight that ``others`` classes share, none more than the least named class.

    Shapes: weights (..., k) descending -> (..., 1) int64.
    """
    return least(left_of(weights), weights[..., -1:] * others)


def apportioned(weights: Array, ticks: int, others: int = 0, total: Array | None = None) -> Array:
    """Shares ``ticks`` among the entries of each row in proportion to ``total``.

    Of equal remainders the first is served first. If another class has as many ticks as the winner,
    the first entry, the winner gets one more, which is taken from the last such class: classes with
    equal probabilities keep the form (q + 1, ..., q + 1, q, ..., q).

    Shapes: weights (..., n) int64, descending except the last if ``others`` classes share it;
    total (..., 1), by default their sum -> (..., n) int64 that sum to ``ticks``.
    Source: Hamilton's method of apportionment.
    """
    if total is None:
        total = weights.sum(-1, keepdims=True)
    if not isinstance(weights, Tensor) and weights.size <= _MAX_PLAIN:
        return _row_by_row(weights, ticks, others, total)
    if not isinstance(weights, Tensor) and weights.shape[-1] <= _MAX_COMPARED:
        weights = np.asfortranarray(weights)  # entry by entry: there are many rows of few
    exact = weights * ticks
    shares = whole_quotient(exact, total)
    left = exact - shares * total
    shares = shares + _served(left, ticks - shares.sum(-1, keepdims=True))
    return _crowned(shares, others)


def _served(left: Array, missing: Array) -> Array:
    """Marks the ``missing`` largest remainders of each row, the first of equals first."""
    count = left.shape[-1]
    keys = left * count + row_of(1, count, left)  # no two are equal
    if count <= _MAX_COMPARED:
        return (keys[..., None, :] > keys[..., :, None]).sum(-1) < missing
    place = least(count - missing, count - 1)
    if isinstance(keys, Tensor):
        threshold: Array = torch.sort(keys).values.gather(-1, place)
    else:
        ordered = np.sort(keys.reshape(-1, count), axis=-1)
        threshold = taken(ordered, place.reshape(-1, 1)).reshape(place.shape)
    return (keys >= threshold) & (missing > 0)


def _crowned(shares: Array, others: int) -> Array:
    count = shares.shape[-1]
    named = shares[..., :-1] if others else shares
    last = (named == named[..., :1]).sum(-1, keepdims=True) - 1
    if others:
        last = where(shares[..., -1:] >= named[..., :1] * others, count - 1, last)
    taken_from = row_of(0, count, shares) == last  # the winner itself where there is no rival
    return shares + row_of(2, count, shares) - taken_from * 1


def _row_by_row(
    weights: NDArray[np.int64], ticks: int, others: int, total: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Does the same with Python's integers, in a third of the time for a few entries."""
    width = weights.shape[-1]
    rows = weights.reshape(-1, width).tolist()
    shared = [
        _of_row(*one, ticks, others) for one in zip(rows, total.ravel().tolist(), strict=True)
    ]
    return np.array(shared, dtype=np.int64).reshape(weights.shape)


def _of_row(weights: list[int], total: int, ticks: int, others: int) -> list[int]:
    shares = [weight * ticks // total for weight in weights]
    missing = ticks - sum(shares)
    left = [w * ticks - share * total for w, share in zip(weights, shares, strict=True)]
    order = sorted(range(len(left)), key=left.__getitem__, reverse=True)  # stable
    # Whatever the numbers, the same is done: its time must not tell what the answer does not.
    for rank, place in enumerate(order):
        shares[place] += rank < missing
    first = shares[0]
    named = shares[:-1] if others else shares
    last = named.count(first) - 1
    if others:
        last = (last, len(shares) - 1)[shares[-1] >= first * others]
    shares[last] -= 1  # the winner itself where there is no rival
    shares[0] += 1
    return shares


def in_ticks(shares: Array, ticks: int, others: int, dtype: torch.dtype) -> Array | Lookup:
    """Returns the probability of each of ``others`` classes that share ticks. Shapes: kept."""
    if ticks <= _MAX_TABLE:
        return Lookup(shares, "values_of_ticks", (ticks, others, dtype))
    return quotient(shares, ticks * others, dtype)


@tables
def values_of_ticks(ticks: int, others: int, dtype: torch.dtype) -> Arrays:
    """Returns the probability of each of ``others`` by count of ticks, and its logarithm."""
    return with_logs(np.arange(ticks + 1) / float(ticks * others), dtype)
