"""What the released log-probabilities of a text's tokens say of its membership: more, a member."""

import zlib

import numpy as np
import torch
from torch import Tensor

from shieldnet.attacks.positions.readings import Readings, mean_over

LOWEST = 0.2
"""Share of a text's tokens that Min-K % keeps, at least one."""
WINDOWS = tuple(dict.fromkeys(np.geomspace(2, 40, 10).round().astype(int).tolist()))
"""Tokens in a window of WBC; a shorter text is one window."""
CAP = -3.0
"""In nats: log p of a token no further down, which one decimal rounds to 0."""
_LEAST_DEVIATION = 1e-6
_LEAST_SHIFT = 1e-6  # in nats, of a whole text


def means_of(readings: Readings, floor: float) -> dict[str, Tensor]:
    """Takes means over each text's tokens. Shapes: -> each (rows,) float64.

    loss: of log p (Yeom 2018). capped loss: of log p no further down than ``CAP``, which is all
    that coarse answers tell. right tokens: the share of which the winner is right.

    floor: the probability that a released zero is read as.
    """
    log_p = readings.floored(floor)
    return {
        "loss": mean_over(log_p, readings.counted),
        "capped loss": mean_over(log_p.clamp_min(CAP), readings.counted),
        "right tokens": mean_over(readings.right.double(), readings.counted),
    }


def plain_scores(readings: Readings, floor: float) -> dict[str, Tensor]:
    """Scores each text by the target's answers alone. Shapes: -> each (rows,) float64.

    The means, and: zlib: the sum of log p by the bytes that the tokens take when they are
    compressed (Carlini 2021). Min-K%: the mean of the lowest fifth of log p (Shi 2024). Min-K%++:
    the same of (log p - its mean) / its deviation, both under the released distribution (Zhang
    2024, arXiv:2404.02936).
    """
    log_p, counted = readings.floored(floor).flatten(1), readings.counted.flatten(1)
    deviation = readings.deviation.flatten(1).clamp_min(_LEAST_DEVIATION)
    standardized = (log_p - readings.mean.flatten(1)) / deviation
    means = means_of(readings, floor)
    return means | {
        "zlib": means["loss"] * counted.sum(1) / _compressed_bytes(readings),
        "Min-K%": lowest_mean(log_p, counted),
        "Min-K%++": lowest_mean(standardized, counted),
    }


def base_scores(target: Readings, base: Readings, floor: float) -> dict[str, Tensor]:
    """Scores each text by how the target's answers differ from the base's, behind one shield.

    ratio to base: the mean of log p less the base's. EZ: log of what the tokens gained that the
    target has wrong, over what they lost; of all tokens, where it has all right (Ilic 2026,
    arXiv:2601.12104). WBC: the share of windows in which the base's loss is the higher, on average
    over their lengths; a tie is a half (Chen 2026, arXiv:2601.02751).
    Shapes: -> each (rows,) float64.
    """
    counted = target.counted.flatten(1)
    shift = (target.floored(floor) - base.floored(floor)).flatten(1)
    return {
        "ratio to base": mean_over(shift, counted),
        "EZ": error_zone(shift, target.right.flatten(1), counted),
        "WBC": window_votes(shift, counted),
    }


def lowest_mean(values: Tensor, counted: Tensor, share: float = LOWEST) -> Tensor:
    """Takes the mean of each row's lowest values that count. Shapes: (rows, n) -> (rows,)."""
    kept = (counted.sum(1).double() * share).long().clamp_min(1).unsqueeze(1)
    ordered = values.double().masked_fill(~counted, torch.inf).sort(1).values
    is_kept = torch.arange(values.shape[1]) < kept
    return ordered.where(is_kept, 0.0).sum(1) / kept.squeeze(1)


def error_zone(shift: Tensor, right: Tensor, counted: Tensor) -> Tensor:
    """Compares gains and losses where the target is wrong. Shapes: (rows, n) -> (rows,)."""
    wrong = counted & ~right
    zone = torch.where(wrong.any(1, keepdim=True), wrong, counted)
    gained, lost = (
        side.clamp_min(0).where(zone, 0.0).sum(1).clamp_min(_LEAST_SHIFT)
        for side in (shift, -shift)
    )
    return (gained / lost).log()


def window_votes(shift: Tensor, counted: Tensor) -> Tensor:
    """Counts windows of the tokens that count in which the sum is above 0.

    Shapes: (rows, n) -> (rows,).
    """
    order = (~counted).byte().argsort(dim=1, stable=True)
    in_front = shift.double().where(counted, 0.0).gather(1, order)
    sums = torch.nn.functional.pad(in_front.cumsum(1), (1, 0))
    lengths = counted.sum(1)
    votes = torch.zeros(len(shift), dtype=torch.float64)
    for width in WINDOWS:
        ends = torch.arange(shift.shape[1] + 1).expand_as(sums)
        own = lengths.clamp_max(width).unsqueeze(1)
        inside = sums - sums.gather(1, (ends - own).clamp_min(0))
        is_window = (ends >= own) & (ends <= lengths.unsqueeze(1))
        won = (inside > 0).double() + (inside == 0).double() / 2
        votes += mean_over(won, is_window)
    return votes / len(WINDOWS)


def unexplained(
    value: Tensor, known: Tensor, reference_value: Tensor, reference_known: Tensor
) -> Tensor:
    """Returns what a straight line through the reference does not explain of the values.

    Shapes: value (rows,), known (rows, columns); the same of the reference -> (rows,) float64.
    """
    center, middle = reference_known.mean(0), reference_value.mean()
    slopes = torch.linalg.lstsq(
        reference_known - center, (reference_value - middle).unsqueeze(1), driver="gelsd"
    ).solution
    line: Tensor = ((known - center) @ slopes).squeeze(1)
    return value - middle - line


def _compressed_bytes(readings: Readings) -> Tensor:
    """Counts the bytes of each text's tokens after zlib. Shapes: -> (rows,) float64."""
    labels = readings.labels.flatten(1).int().numpy()
    counted = readings.counted.flatten(1).numpy()
    sizes = [
        len(zlib.compress(tokens[kept].tobytes()))
        for tokens, kept in zip(labels, counted, strict=True)
    ]
    return torch.tensor(sizes, dtype=torch.float64)
