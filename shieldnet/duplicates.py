"""Records of two sets that are one, but for what a cast, a copy or a rounding changed."""

import torch
from torch import Tensor

from shieldnet.statistics import random_sums

_SUMS = 64
_AT_ONCE = 10**7  # distances
_CAST = 1e-6  # of a number's size: what float32 and a factor of 1 + 1e-7 leave apart
_CAST_APART, _APART = 1e-4, 0.05  # deviations, root mean square over the columns
_CLOSER = 0.05  # than the nearest record of its own set, at least so many times
_MIN_COLUMNS = 4  # fewer bring two records as near by chance


def near_duplicates(one: Tensor, other: Tensor) -> Tensor:
    """Lists the pairs of rows that are one record: the nearest row of ``one`` to each of ``other``.

    Two rows are one where they lie twenty times nearer to each other than either does to the next
    record of its own set, and are a cast or a copy apart in every number, or near in four columns
    and more: rounded, or changed a little. Records that lie near by nature lie so within a set.
    Copies of a record that its own set has nearly twice are not found.
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
    is_cast = ((rows[0][nearest] - rows[1]).abs() <= _CAST * size).all(1) & (apart <= _CAST_APART)
    is_near = (apart <= _APART) & (int((deviation > 0).sum()) >= _MIN_COLUMNS)
    found = (is_near | is_cast).nonzero().flatten()
    sides = (
        _to_the_next(scaled[0], short[0], nearest[found]),
        _to_the_next(scaled[1], short[1], found),
    )
    found = found[apart[found] <= _CLOSER * torch.minimum(*sides)]
    return torch.stack([nearest[found], found], 1)


def _to_the_next(scaled: Tensor, short: Tensor, places: Tensor) -> Tensor:
    """Returns how far the rows at these places lie from the nearest other row of their set.

    Shapes: scaled (n, d), short (n, k), places (p,) -> (p,).
    """
    if len(scaled) < 2 or not len(places):
        return torch.full((len(places),), torch.inf, dtype=scaled.dtype)
    other = _nearest(short, short[places], but=places)
    return (scaled[other] - scaled[places]).square().mean(1).sqrt()


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
