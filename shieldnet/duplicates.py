"""Records of two sets that are one, but for what a cast, a copy or a rounding changed."""

import torch
from torch import Tensor

from shieldnet.statistics import random_sums

_SUMS = 64
_AT_ONCE = 10**7  # distances
_CAST = 1e-6  # of a number's size: what float32 and a factor of 1 + 1e-7 leave apart
_ROUNDED = 0.05  # deviations, root mean square over the features: one decimal of unit deviation
_MOST_JUDGED = 2000


def near_duplicates(one: Tensor, other: Tensor) -> Tensor:
    """Lists the pairs of rows that are one record: the nearest row of ``one`` to each of ``other``.

    Rows that differ in each number by a rounding of its type are one. So are rows that lie much
    nearer than records of one set do among themselves, where many do: a table was rounded, or its
    records were changed a little. Records of few columns may lie that near by chance; then they lie
    so within a set as often, and are left alone.
    Whole numbers are tokens or counts, of which none is nearly another: there are no pairs.
    Shapes: one (n, ...), other (m, ...) -> (pairs, 2), rows of one and of other.
    """
    if not (one.is_floating_point() and other.is_floating_point()):
        return torch.empty(0, 2, dtype=torch.int64)
    rows = [part.detach().cpu().double().flatten(1) for part in (one, other)]
    pool = torch.cat(rows)
    center, deviation = pool.mean(0), pool.std(0)
    scaled = [(part - center) / deviation.where(deviation > 0, 1.0) for part in rows]
    short = [random_sums(part.float(), _SUMS) for part in scaled]
    nearest = _nearest(short[0], short[1])
    apart = (scaled[0][nearest] - scaled[1]).square().mean(1).sqrt()
    size = torch.maximum(rows[0][nearest].abs(), rows[1].abs())
    is_cast = ((rows[0][nearest] - rows[1]).abs() <= _CAST * size).all(1)
    some = torch.arange(min(len(short[0]), _MOST_JUDGED))
    own = _nearest(short[0], short[0][some], but=some)
    within = (scaled[0][own] - scaled[0][some]).square().mean(1).sqrt() if len(short[0]) > 1 else ()
    by_chance = float((torch.as_tensor(within) <= _ROUNDED).double().mean()) if len(within) else 0.0
    is_near, expected = apart <= _ROUNDED, by_chance * len(scaled[1])
    if int(is_near.sum()) <= 2 * expected + 5 * expected**0.5 + 5:
        is_near = is_cast
    found = (is_near | is_cast).nonzero().flatten()
    return torch.stack([nearest[found], found], 1)


def _nearest(known: Tensor, asked: Tensor, but: Tensor | None = None) -> Tensor:
    """Returns the row of ``known`` nearest to each asked one, but for the row named for it.

    Shapes: known (n, d), asked (m, d), but (m,) -> (m,).
    """
    size = max(1, _AT_ONCE // len(known))
    places = []
    for start in range(0, len(asked), size):
        distances = torch.cdist(asked[start : start + size], known)
        if but is not None:
            distances.scatter_(1, but[start : start + size].unsqueeze(1), torch.inf)
        places.append(distances.argmin(1))
    return torch.cat(places)
