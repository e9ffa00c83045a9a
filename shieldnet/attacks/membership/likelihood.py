"""Was this record in the training data? The arithmetic of attacks that compare with shadows.

Shapes: target (rows,) what the target's answers say; shadows (shadows, rows) what the shadows'
say; trained_on (shadows, rows) bool, whether a record trained a shadow. Everything is float64,
and a higher score says member.
"""

import torch
from torch import Tensor

SHRINK = 16.0
"""Rows' worth of the pooled variance in each record's own: few shadows tell no variance."""

GAMMA = 2.0
OFFLINE = 0.3


def lira(target: Tensor, shadows: Tensor, trained_on: Tensor, shrink: float = SHRINK) -> Tensor:
    """Scores by the log ratio of two Gaussians, fitted to the shadows with and without the record.

    Each variance is the record's own, drawn towards the pooled one as if that had been seen in
    ``shrink`` more shadows; ``shrink`` 0 is the textbook's, infinity its global variance. Where all
    shadows say the same, as behind discrete answers, the pooled variance keeps the ratio finite.
    A record that no shadow was trained on, or every one, borrows what lies between the two means
    of other records.

    Source: Carlini et al. 2022 (arXiv:2112.03570), Algorithm 1, online.
    """
    return _gaussian_ratio(target, shadows, trained_on, _centers(shadows, trained_on), shrink)


def _gaussian_ratio(
    target: Tensor,
    shadows: Tensor,
    trained_on: Tensor,
    centers: tuple[Tensor, Tensor],
    shrink: float,
) -> Tensor:
    """Returns the log ratio of two Gaussians about these centers: with the record, and without."""
    with_it, without = (
        log_normal(target, center, _variance(shadows, chosen, center, shrink))
        for chosen, center in zip((trained_on, ~trained_on), centers, strict=True)
    )
    return with_it - without


def lira_offline(
    target: Tensor, shadows: Tensor, trained_on: Tensor, shrink: float = SHRINK
) -> Tensor:
    """Scores by how far the answer lies above those of shadows without the record, in deviations.

    Source: Carlini et al. 2022, section VI, offline; the deviations order as the tail chances do.
    """
    _, center = _centers(shadows, trained_on)
    return (target - center) / _variance(shadows, ~trained_on, center, shrink).sqrt()


def lira_by_pull(
    target: Tensor, shadows: Tensor, trained_on: Tensor, shrink: float = SHRINK
) -> Tensor:
    """Scores residuals as ``lira`` does, with one law for what training on a record leaves of them.

    Training pulls an answer to the target: a residual that is c without the record is k c with it.
    k is fitted to all records, and each record's own is drawn towards it as if that had been seen
    in ``shrink`` more shadows. So few shadows tell what two free means would need many for.

    For a linear regression the law is exact, and 1 - k is the record's leverage (Hoaglin, Welsch
    1978).
    """
    _, without = _centers(shadows, trained_on)
    squares = without.square()
    told = (shadows.double() * trained_on).sum(0) * without
    count = trained_on.sum(0)
    kept = told.sum() / (count * squares).sum().clamp_min(1e-300)
    weight = shrink * squares.mean()
    own = (told + weight * kept) / (count * squares + weight).clamp_min(1e-300)
    return _gaussian_ratio(target, shadows, trained_on, (own * without, without), shrink)


def lira_half_way(
    target: Tensor, shadows: Tensor, trained_on: Tensor, shrink: float = SHRINK
) -> Tensor:
    """Scores residuals by the log ratio of two Gaussians, about one center and about half of it.

    The center is that of the shadows without the record, and training on a record is taken to
    leave half of it: an adversary who does not train on the record knows no better.
    """
    _, center = _centers(shadows, trained_on)
    variance = _variance(shadows, ~trained_on, center, shrink)
    return log_normal(target, center / 2, variance) - log_normal(target, center, variance)


def symbol_ratio(
    target: Tensor, shadows: Tensor, trained_on: Tensor, weight: float = 4.0
) -> Tensor:
    """Scores discrete answers by the log ratio of how often shadows gave them, with and without.

    A record's own counts are smoothed by those of all records, worth ``weight`` shadows.
    Cost: grows with the number of different answers; meant for a few hundred at most.
    """
    symbols, codes = torch.cat([target.unsqueeze(0), shadows]).unique(return_inverse=True)
    target_codes, shadow_codes = codes[0], codes[1:]
    ratios: list[Tensor] = []
    for chosen in (trained_on, ~trained_on):
        frequencies = torch.bincount(shadow_codes[chosen], minlength=len(symbols)).double() + 0.5
        frequencies /= frequencies.sum()
        own = ((shadow_codes == target_codes) & chosen).sum(0)
        total = chosen.sum(0)
        ratios.append(((own + weight * frequencies[target_codes]) / (total + weight)).log())
    return ratios[0] - ratios[1]


def rmia(
    target: Tensor,
    shadows: Tensor,
    trained_on: Tensor,
    population: tuple[Tensor, Tensor, Tensor],
    *,
    gamma: float = GAMMA,
    offline: float | None = None,
) -> Tensor:
    """Scores by the share of a population whose likelihood ratio the record's beats by ``gamma``.

    target and shadows are probabilities of the true label here. population: target (m,), shadows
    (shadows, m) and trained_on (shadows, m) of other records. offline: the constant a that stands
    for the shadows trained on the record, as p(x) = ((1 + a) p_out + 1 - a) / 2; None uses them.
    Where p is near 1 few records beat any by gamma 2, and most score the same: no attack here uses
    it, ``info_rmia`` replaces it.

    Source: Zarifzadeh, Liu, Shokri 2024 (arXiv:2312.03262), equations 2 to 4 and section 3.
    """
    own = _ratio(target, shadows, trained_on, offline)
    others = _ratio(*population, offline).sort().values
    beaten = torch.searchsorted(others, (own / gamma).contiguous(), right=True)
    return beaten.double() / len(others)


def info_rmia(
    target: Tensor,
    shadows: Tensor,
    trained_on: Tensor,
    population: tuple[Tensor, Tensor, Tensor],
    *,
    offline: float | None = None,
) -> Tensor:
    """Scores by the log of a record's likelihood ratio, less its mean over a population.

    Takes what ``rmia`` takes but for gamma, and gives different records different scores.
    Source: InfoRMIA, ICLR 2026.
    """
    own = _ratio(target, shadows, trained_on, offline).log()
    return own - _ratio(*population, offline).log().mean()


def _ratio(target: Tensor, shadows: Tensor, trained_on: Tensor, offline: float | None) -> Tensor:
    """Returns p(x | target) / p(x), from the side that there is where one is missing."""
    with_it, without = _mean(shadows, trained_on), _mean(shadows, ~trained_on)
    without = torch.where(without.isnan(), with_it, without)
    if offline is None:
        usual = (torch.where(with_it.isnan(), without, with_it) + without) / 2
    else:
        usual = ((1 + offline) * without + 1 - offline) / 2
    return target.double().clamp_min(1e-300) / usual.clamp_min(1e-300)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Returns each record's mean over the chosen shadows, NaN where it has none."""
    return (values.double() * chosen).sum(0) / chosen.sum(0)


def _centers(values: Tensor, trained_on: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each record's means over the shadows with it and over those without it.

    Where one is missing, it is the other moved by what lies between the two for other records.
    """
    with_it, without = _mean(values, trained_on), _mean(values, ~trained_on)
    between = (with_it - without).nanmean().nan_to_num(0.0)
    return (
        torch.where(with_it.isnan(), without + between, with_it),
        torch.where(without.isnan(), with_it - between, without),
    )


def _variance(values: Tensor, chosen: Tensor, center: Tensor, shrink: float) -> Tensor:
    squares = ((values.double() - center).square() * chosen).sum(0)
    freedom = (chosen.sum(0) - 1).clamp_min(0).double()
    pooled = squares.sum() / freedom.sum().clamp_min(1)
    least = 1e-12 + 1e-6 * pooled
    if shrink == float("inf"):
        return pooled.clamp_min(least).expand_as(center)
    variance = (squares + shrink * pooled) / (freedom + shrink).clamp_min(1)
    return variance.clamp_min(least)


def log_normal(value: Tensor, center: Tensor, variance: Tensor) -> Tensor:
    """Returns the logarithm of a normal density, but for a constant."""
    return -((value.double() - center).square() / variance + variance.log()) / 2
