"""Query patterns: how the queries of one subject differ from ordinary ones, as pure arithmetic."""

import math
import secrets
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shieldnet.attacks.adversary.features import Scale
from shieldnet.core.checks import whole
from shieldnet.core.errors import DataError

DIMENSIONS = 32
"""Numbers that are kept of an input: a random projection of it."""
MIN_NATURAL = 200
"""Natural inputs from which thresholds can be read."""
_MAX_NATURAL = 1000
_RARE, _LOW = 0.01, 0.10  # shares of natural queries beyond the thresholds
_DEVIATIONS = 3.0  # of a share's lower bound, which is looked at after every query
_WINDOWS = 40  # of natural traffic, drawn to learn thresholds
_MIN_OF_CLASS = 20  # natural inputs of a class from which its own distances are learned
_MIN_SHAPED = 50  # distances from which their shape is looked at


@dataclass(frozen=True)
class Queries:
    """Holds what is kept of queries.

    Shapes: rows (n, dimensions) projections; labels (n,) int64 the released winners; margins (n,)
    winner less runner-up.
    """

    rows: Tensor
    labels: Tensor
    margins: Tensor

    @classmethod
    def none(cls) -> "Queries":
        """Returns no queries."""
        no = torch.empty(0)
        return cls(torch.empty(0, DIMENSIONS), no.long(), no)

    def beside(self, later: "Queries") -> "Queries":
        """Returns both, these first."""
        return Queries(
            torch.cat([self.rows, later.rows]),
            torch.cat([self.labels, later.labels]),
            torch.cat([self.margins, later.margins]),
        )

    def at(self, places: Tensor) -> "Queries":
        """Keeps the queries at these places, in this order."""
        return Queries(self.rows[places], self.labels[places], self.margins[places])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Profile:
    """What ordinary queries look like: thresholds that only few natural ones pass.

    novel_above: distance to the nearest natural input that 1% of natural inputs exceed.
    close_below: of each class, the distance to the nearest input of the same class that 1% of
    natural ones undercut: classes differ in it, and a subject may ask about one alone.
    unsure_below: the largest margin of a released answer that at most 10% of natural ones have or
    undercut; -1 where there is none, as of labels. expected: the shares of natural queries beyond
    these three. least_normality: the Shapiro-Wilk statistic that hardly any natural traffic, of all
    classes or of one, undercuts. memory: how many queries of a subject are looked back at.
    Distances are of random projections of standardized inputs, which keep them within about a
    quarter. The projection comes from a secret seed: who knew it could move an input without moving
    its projection. Natural inputs are kept as projections alone, which for inputs of up to 32
    numbers hold all of them, and of larger ones 32 sums.
    """

    scale: Scale = field(repr=False)
    projection: Tensor = field(repr=False)
    natural: Tensor = field(repr=False)
    novel_above: float
    close_below: Tensor
    unsure_below: float
    expected: tuple[float, float, float]
    least_normality: float
    memory: int

    @classmethod
    def of(
        cls, inputs: Tensor, distribution: Tensor, *, memory: int = 256, seed: int | None = None
    ) -> "Profile":
        """Learns thresholds from natural inputs and what the shield answered about them.

        inputs: of the kind that clients ask about, best none that trained the model. memory: how
        many queries of a subject are looked back at. seed: of the projection; by default from the
        operating system's randomness.
        Shapes: inputs (n >= 200, ...), distribution (n, classes).
        Errors: DataError for fewer inputs, tokens, and numbers that are not finite.
        """
        if len(inputs) < MIN_NATURAL:
            raise DataError(
                f"Expected at least {MIN_NATURAL} natural inputs to learn what is ordinary, got "
                f"{len(inputs)}."
            )
        if len(distribution) != len(inputs):
            raise DataError(
                f"Expected an answer for each of {len(inputs)} natural inputs, got "
                f"{len(distribution)}."
            )
        inputs, distribution = inputs[:_MAX_NATURAL], distribution[:_MAX_NATURAL]
        secret = secrets.randbits(63) if seed is None else whole("seed", seed, low=0)
        generator = torch.Generator().manual_seed(secret)
        scale = Scale.of(require_numbers(inputs))
        features = inputs[0].numel()
        weights = torch.randn(features, DIMENSIONS, generator=generator)
        projection = weights / math.sqrt(DIMENSIONS)
        known = queries_of(inputs, distribution, scale, projection)
        apart = torch.cdist(known.rows, known.rows).fill_diagonal_(math.inf)
        novel_above = float(apart.amin(1).quantile(1 - _RARE))
        close_below = _close(apart, known.labels, distribution.shape[-1])
        span = min(memory, len(known) // 2)
        windows = [
            earlier_distances(known.at(torch.randperm(len(known), generator=generator)[:span]))
            for _ in range(_WINDOWS)
        ]
        of_one = [
            earlier_distances(known.at((known.labels == label).nonzero().flatten()))
            for label in known.labels.unique()
        ]
        normality = torch.tensor([shapiro_wilk(window) for window in windows]).quantile(_RARE)
        unsure_below, unsure = _low_margin(known.margins)
        return cls(
            scale=scale,
            projection=projection,
            natural=known.rows,
            novel_above=novel_above,
            close_below=close_below,
            unsure_below=unsure_below,
            expected=(_RARE, _RARE, unsure),
            least_normality=min(float(normality), *map(shapiro_wilk, of_one)),
            memory=memory,
        )

    def read(self, inputs: Tensor, distribution: Tensor) -> Queries:
        """Returns what is kept of queries. Shapes: (n, ...) and (n, classes)."""
        return queries_of(inputs, distribution, self.scale, self.projection)

    def is_novel(self, queries: Queries) -> Tensor:
        """Returns which queries are far from all natural inputs. Shapes: -> (n,) bool."""
        return torch.cdist(queries.rows, self.natural).amin(1) > self.novel_above

    def is_close(self, queries: Queries, distances: Tensor) -> Tensor:
        """Returns which queries are near an earlier one. Shapes: distances (n,) -> (n,) bool."""
        return distances < self.close_below[queries.labels]

    def is_unsure(self, queries: Queries) -> Tensor:
        """Returns which answers have a low margin. Shapes: -> (n,) bool."""
        return queries.margins <= self.unsure_below


@dataclass(frozen=True)
class Suspicion:
    """Says how far the latest queries of a subject are from ordinary ones, each from 0 to 1.

    novel: the share of inputs unlike all natural ones; close: of inputs next to an earlier one with
    the same answer; unsure: of answers with a low margin; each as a lower bound, less what is
    usual. uneven: how far the normality of the distances is below that of natural traffic. queries:
    how many they rest on.
    """

    novel: float = 0.0
    close: float = 0.0
    unsure: float = 0.0
    uneven: float = 0.0
    queries: int = 0

    @classmethod
    def of(
        cls,
        profile: Profile,
        queries: Queries,
        *,
        novel: Tensor,
        distances: Tensor,
        normality: float,
    ) -> "Suspicion":
        """Judges queries.

        novel: which of them are; normality: of their distances to earlier ones.
        Shapes: novel (n,) bool, distances (n,).
        """
        met = int(distances.isfinite().sum())
        close = int(profile.is_close(queries, distances).sum())
        unsure = profile.is_unsure(queries)
        counts = (int(novel.sum()), len(novel)), (close, met), (int(unsure.sum()), len(unsure))
        novel_share, close_share, unsure_share = (
            excess(hits, samples, usual)
            for (hits, samples), usual in zip(counts, profile.expected, strict=True)
        )
        uneven = max(0.0, 1 - normality / profile.least_normality)
        return cls(novel_share, close_share, unsure_share, uneven, len(novel))

    @property
    def score(self) -> float:
        """Returns the largest of the four."""
        return max(self.novel, self.close, self.unsure, self.uneven)

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {getattr(self, name):.2f}" for name in ("novel", "close", "unsure", "uneven")
        )
        return f"score {self.score:.2f} after {self.queries} queries ({parts})"


def _close(apart: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Returns the distance that few inputs of a class keep below, of a rare class the least.

    Shapes: apart (n, n), labels (n,) -> (classes,).
    """
    other = (labels.unsqueeze(1) != labels) | (apart == 0)  # the same input twice is no neighbor
    nearest = apart.masked_fill(other, math.inf).amin(1)
    below = torch.full((classes,), math.inf)
    for label in range(classes):
        own = nearest[(labels == label) & nearest.isfinite()]
        if len(own) >= _MIN_OF_CLASS:
            below[label] = own.quantile(_RARE)
    least = float(below.amin())
    return below.nan_to_num(posinf=least if math.isfinite(least) else 0.0)


def _low_margin(margins: Tensor) -> tuple[float, float]:
    """Returns the largest margin that few natural answers have or undercut, and their share."""
    ordered = margins.sort().values
    shares = torch.searchsorted(ordered, ordered, right=True) / len(ordered)
    few = shares <= _LOW
    if not bool(few.any()):
        return -1.0, 0.0
    return float(ordered[few][-1]), float(shares[few][-1])


_FAR = 1e6  # deviations from what is natural


def require_numbers(inputs: Tensor) -> Tensor:
    """Returns inputs whose distances mean something; raises DataError for tokens, NaN and Inf."""
    if inputs.dtype == torch.int64:
        raise DataError(
            "Expected inputs whose distances mean something, got int64, which may be tokens: watch "
            "their embeddings instead."
        )
    if not bool(inputs.isfinite().all()):
        raise DataError("Expected finite inputs, got NaN or Inf.")
    return inputs


def queries_of(inputs: Tensor, distribution: Tensor, scale: Scale, projection: Tensor) -> Queries:
    """Projects inputs and reads answers. Shapes: (n, ...), (n, classes), ..., (features, d)."""
    best = distribution.topk(min(2, distribution.shape[-1]), -1)
    margins = best.values[:, 0] - best.values[:, -1]
    # However far a row is, its distances are numbers: NaN would compare with none.
    rows = scale.apply(inputs).nan_to_num(_FAR, _FAR, -_FAR).clamp(-_FAR, _FAR)
    return Queries(rows @ projection, best.indices[:, 0], margins.float())


def earlier_distances(queries: Queries, first: int = 0) -> Tensor:
    """Returns the distance of each query to the nearest earlier one with the same answer.

    first: from which on. Infinite where there is none. Shapes: (n, d) -> (n - first,).
    """
    asked, count = queries.rows[first:], len(queries)
    # By differences: of a matrix product, a tiny distance would be rounding alone.
    apart = torch.cdist(asked, queries.rows, compute_mode="donot_use_mm_for_euclid_dist")
    is_later = torch.arange(count) >= torch.arange(first, count).unsqueeze(1)
    is_other = queries.labels[first:].unsqueeze(1) != queries.labels
    return apart.masked_fill(is_later | is_other, math.inf).amin(1)


def shapiro_wilk(distances: Tensor) -> float:
    """Returns how near distances are to a normal distribution, from 0 to 1.

    As PRADA has it: of distances within three deviations of their mean. 1 for too few.
    Shapes: (n,). Source: Juuti et al. 2019 (arXiv:1805.02628), section 5.
    """
    from scipy.stats import shapiro

    known = distances[distances.isfinite()].double()
    if len(known) < _MIN_SHAPED:
        return 1.0
    center, deviation = known.mean(), known.std()
    known = known[(known - center).abs() <= 3 * deviation]
    return float(shapiro(known.numpy()).statistic) if float(known.std()) > 0 else 0.0


def excess(hits: int, samples: int, expected: float) -> float:
    """Returns by how much a share is surely more than expected, from 0 to 1.

    The lower end of an interval of three deviations is compared. Source: Wilson 1927.
    """
    if samples == 0:
        return 0.0
    share, square = hits / samples, _DEVIATIONS**2
    center = share + square / (2 * samples)
    reach = _DEVIATIONS * math.sqrt(share * (1 - share) / samples + square / (4 * samples**2))
    low = (center - reach) / (1 + square / samples)
    return max(0.0, (low - expected) / (1 - expected))
