"""Query patterns: how the queries of one subject differ from ordinary ones, as pure arithmetic."""

import math
import secrets
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
from torch import Tensor

from shieldnet.attacks.adversary.scales import Scale
from shieldnet.core.checks import whole
from shieldnet.core.errors import DataError
from shieldnet.data.examples import raw_bytes

DIMENSIONS = 32
"""Numbers that are kept of an input: a random projection of it."""
MIN_NATURAL = 200
"""Natural inputs from which thresholds can be read."""
_MAX_NATURAL = 1000  # different natural inputs, drawn from all, whose distances are looked at
_MAX_READ = 10_000  # natural inputs, of which these are drawn
_RARE, _LOW = 0.01, 0.10  # shares of natural queries beyond the thresholds
_DEVIATIONS = 3.0  # of a share's lower bound, which is looked at after every query
_WINDOWS = 40  # of natural traffic, drawn to learn thresholds
_MIN_OF_CLASS = 50  # natural inputs of a class from which its own distances are learned
_MIN_SCALED = 5  # natural inputs of a class from which its usual distance is learned
_TIED = 1e-3  # part of a distance that rounding changes at most: on a grid, many are the same
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
    natural ones undercut: classes differ in it, and a subject may ask about one alone. Of a class
    with fewer than 50 natural inputs it is learned from all classes together.
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

        inputs: of the kind that clients ask about, best none that trained the model, in any order:
        up to 1,000 different ones are drawn from them, the same each time. memory: how many queries
        of a subject are looked back at. seed: of the projection; by default from the operating
        system's randomness.
        Shapes: inputs (n >= 200, ...), distribution (n, classes).
        Errors: DataError for fewer inputs, tokens, numbers that are not finite, and inputs that are
        all the same.
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
        places = _drawn(require_numbers(inputs))
        inputs, distribution = inputs[places], distribution[places]
        secret = secrets.randbits(63) if seed is None else whole("seed", seed, low=0)
        generator = torch.Generator().manual_seed(secret)
        scale = Scale.of(inputs)
        features = inputs[0].numel()
        weights = torch.randn(features, DIMENSIONS, generator=generator)
        projection = weights / math.sqrt(DIMENSIONS)
        known = queries_of(inputs, distribution, scale, projection)
        apart = _apart(known.rows, known.rows).fill_diagonal_(math.inf)
        novel_above = float(apart.amin(1).quantile(1 - _RARE))
        close_below = _close(apart, known.labels, distribution.shape[-1], memory)
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
        return _apart(queries.rows, self.natural).amin(1) > self.novel_above

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
        least = profile.least_normality  # zero where natural distances are all the same
        uneven = max(0.0, 1 - normality / least) if least > 0 else 0.0
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


def _drawn(inputs: Tensor) -> Tensor:
    """Draws different inputs of all, so that the order of a file says nothing; the same each time.

    A watch passes over repeats, so they teach nothing either. Shapes: (n, ...) -> (<= 1000,).
    Errors: DataError where all are the same.
    """
    generator = torch.Generator().manual_seed(0)
    different: dict[bytes, int] = {}
    for place in torch.randperm(len(inputs), generator=generator)[:_MAX_READ].tolist():
        different.setdefault(blake2b(raw_bytes(inputs[place])).digest(), place)
        if len(different) == _MAX_NATURAL:
            break
    if len(different) == 1:
        raise DataError(
            f"Expected natural inputs that differ, got the same one {len(inputs)} times: nothing "
            "can be learned of what is ordinary."
        )
    return torch.tensor(list(different.values()))


def _apart(rows: Tensor, others: Tensor) -> Tensor:
    """Returns distances, by differences: of a matrix product, a tiny one is rounding alone."""
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")


def _close(apart: Tensor, labels: Tensor, classes: int, memory: int) -> Tensor:
    """Returns the distance that few inputs of a class keep below.

    Shapes: apart (n, n), infinite from an input to itself; labels (n,) -> (classes,).
    """
    apart = apart.masked_fill(apart == 0, math.inf)  # the same input twice is no neighbor
    same = apart.masked_fill(labels.unsqueeze(1) != labels, math.inf)
    nearest = same.amin(1)
    counts = labels.bincount(minlength=classes)
    if int(nearest.isfinite().sum()) >= _MIN_OF_CLASS:
        below = _close_of_few(same, labels, counts, memory)
    else:  # hardly any class has two: of all inputs together, as if each class had one
        below = _close_of_few(apart, torch.zeros_like(labels), torch.ones_like(counts), memory)
    for label in (counts >= _MIN_OF_CLASS).nonzero().flatten():
        own = nearest[(labels == label) & nearest.isfinite()]
        if len(own) >= _MIN_OF_CLASS:
            below[label] = own.quantile(_RARE)
    return below * (1 - _TIED)


def _close_of_few(same: Tensor, labels: Tensor, counts: Tensor, memory: int) -> Tensor:
    """Returns the same of classes with few inputs, from all classes together.

    How much nearer than usual of its class the nearest input is, is learned of all classes; what is
    usual, of each that has some inputs. Of others little is known, so the least of the usual ones
    counts, and what hardly any pair undercuts. Queries that are looked back at may be more inputs
    of a class than it was learned from, and the nearest of more is nearer: as many times more make
    as many times more of them undercut a distance, so the threshold goes on from the distances that
    10% and 1% undercut. Zero where all inputs are the same.
    Shapes: same (n, n), infinite between classes; labels (n,), counts (classes,) -> (classes,).
    """
    pairs = same[same.isfinite()]
    if not len(pairs):
        return torch.zeros(len(counts))
    usual = torch.full((len(counts),), math.inf)
    for label, count in zip(*labels.unique(return_counts=True), strict=True):
        own = same[labels == label]
        if count >= _MIN_SCALED and bool(own.isfinite().any()):
            usual[label] = own[own.isfinite()].median()
    has_own = bool(usual.isfinite().any())
    apart = (usual if has_own else torch.full_like(usual, float(pairs.median())))[labels]
    known = same.amin(1).isfinite() & apart.isfinite()
    nearer = same.amin(1)[known] / apart[known]
    rare, low = nearer.quantile(torch.tensor([_RARE, _LOW]))
    tenfold = math.log10(max(1.0, memory / float(counts[labels[known]].float().mean())))
    least = torch.minimum(usual.amin(), pairs.quantile(_RARE))
    below: Tensor = usual.where(usual.isfinite(), least) * rare * (rare / low) ** tenfold
    return below


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
    apart = _apart(asked, queries.rows)
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
