"""Are the released confidences as large as the share of answers that are right?"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shieldnet.attacks.base import Game
from shieldnet.checks.base import Check
from shieldnet.core.statistics import Curve, Interval, mean, proportion
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import Limit, Metric

MIN_ROWS = 200
"""Fewer nonmembers than this tell nothing of confidences near 1."""

_BINS = 10
_MAX_DISTINCT_VALUES = 20
_SURE = 0.99  # of the lower end, which rests on signs that were guessed
_RESAMPLES = 1000


@dataclass(frozen=True)
class Calibration(Check):
    """Compares the confidence of each released winner with how often it is right, on nonmembers.

    ``calibration.ece`` is the expected calibration error over ten bins of as many rows each: the
    mean distance between confidence and share right. The plain estimate finds errors where there
    are none, for it takes chance for distance; here each half of the rows says in which direction
    a bin is off and the other half by how much. The upper end is the plain estimate's.
    ``calibration.overconfidence`` is the mean confidence less the share right.

    Curve ``calibration``: of each bin the mean confidence and the share right.
    Errors: NotApplicable without labels, below 200 rows, or where answers have no confidence.
    Source: Guo et al. 2017 (arXiv:1706.04599), eq. 3; cross-fitting against its bias.
    """

    metrics = (
        Metric(
            "calibration.ece",
            "calibration error",
            "more",
            Limit(
                "max_calibration_error",
                0.10,
                "how far released confidence is from accuracy",
                helps="Calibrate the model on held-out records before hardening it (temperature "
                "scaling, CalibratedClassifierCV), or release labels alone.",
                needs="it needs 200 nonmembers with labels, and answers with confidences",
            ),
            standards=("AISVS 11.2.3",),
            needs_confidence=True,
        ),
        Metric(
            "calibration.overconfidence",
            "overconfidence",
            "more",
            ungated="the calibration error, which is at least as large, is judged",
            standards=("AISVS 11.2.3",),
            needs_confidence=True,
        ),
    )

    def __call__(self, game: Game) -> Outcome:
        game.require_classes()
        examples = game.nonmembers
        labels = game.labels(examples)
        game.require_rows(MIN_ROWS, examples)
        confidence, winner = game.ask(examples).distribution.double().max(-1)
        if bool((confidence == confidence[0]).all()):
            raise NotApplicable("every answer is as sure as every other: labels have no confidence")
        right = (winner == labels).double()
        bins = bins_of(confidence)
        threat, source = Threat(), "the released winner on nonmembers"

        def finding(name: str, interval: Interval, note: str = "") -> Finding:
            return Finding.of(
                name,
                interval,
                samples=len(labels),
                baseline=0.0,
                threat=threat,
                source=source,
                note=note,
            )

        return Outcome(
            findings=(
                finding("calibration.ece", error_of(right - confidence, bins, game.seed)),
                finding(
                    "calibration.overconfidence",
                    mean(confidence - right),
                    "mean confidence less accuracy; below 0 the answers are underconfident",
                ),
            ),
            curves={"calibration": _curve(confidence, right, bins)},
        )


def bins_of(confidence: Tensor) -> Tensor:
    """Numbers bins of about as many rows each; equal confidences share one, and few have their own.

    Shapes: (n,) -> (n,) int64.
    """
    values = confidence.unique()
    if len(values) <= _MAX_DISTINCT_VALUES:
        return torch.searchsorted(values, confidence)
    inner = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64)[1:-1]
    edges = torch.quantile(confidence, inner).unique()
    bins: Tensor = torch.bucketize(confidence, edges, right=True)
    return bins.unique(return_inverse=True)[1]  # type: ignore[no-any-return]  # a tensor of the same shape


def error_of(gap: Tensor, bins: Tensor, seed: int) -> Interval:
    """Estimates the mean distance of the bins from 0, from what each row is right less sure.

    Shapes: gap (n,), bins (n,), numbers of bins.
    """
    hot = torch.nn.functional.one_hot(bins).double()
    generator = torch.Generator().manual_seed(seed)
    half = torch.randperm(len(gap), generator=generator) % 2 == 0
    off = torch.empty_like(gap)
    for guess, judge in ((half, ~half), (~half, half)):
        off[judge] = gap[judge] * (gap[guess] @ hot[guess]).sign()[bins[judge]]
    surely = mean(off, _SURE)
    count = len(gap)
    draws = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=_RESAMPLES)
    again = ((torch.from_numpy(draws) * gap) @ hot).abs().sum(1) / count
    plain = float((gap @ hot).abs().sum()) / count
    high = float(np.quantile(again.numpy(), 0.975)) - (float(again.mean()) - plain)
    value = max(0.0, surely.value)
    return Interval(value, max(0.0, surely.low), max(value, mean(off).high, high))


def _curve(confidence: Tensor, right: Tensor, bins: Tensor) -> Curve:
    points = []
    for bin_number in bins.unique().tolist():
        mine = bins == bin_number
        share = proportion(float(right[mine].sum()), int(mine.sum()))
        points.append((float(confidence[mine].mean()), share.value, share.low, share.high))
    return Curve(
        *(tuple(round(number, 6) for number in column) for column in zip(*points, strict=True))
    )
