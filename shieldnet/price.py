"""What one answer costs, how costs add, and what they bound for every adversary."""

import math
import sys
from dataclasses import dataclass
from statistics import NormalDist

import torch

from shieldnet._validate import fraction, whole
from shieldnet.errors import ConfigError

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Price:
    """Holds what one answer, or a sum of answers, may give away at most.

    bits: maximal leakage, log2 of sum over answers of max over secrets of P(answer | secret); for
        a deterministic interface log2 of the number of answers that can occur (Issa, Wagner,
        Kamath 2020). mu: Gaussian differential privacy between any two worlds upstream (Dong,
        Roth, Su 2022). pure: epsilon of the (epsilon, 0)-differential privacy between them.
        center: the same as mu between any world and one fixed reference, by default mu itself;
        half of it where all rows lie in a ball. Infinite means unbounded or unknown.
    """

    bits: float = math.inf
    mu: float = math.inf
    pure: float = math.inf
    center: float = math.inf

    def __post_init__(self) -> None:
        if not (self.bits >= 0 and self.mu >= 0 and self.pure >= 0):
            raise ConfigError(
                f"Expected bits, mu and pure >= 0, got {self.bits}, {self.mu} and {self.pure}."
            )
        if not self.center >= 0:
            raise ConfigError(f"Expected center >= 0, got {self.center}.")
        # Any world can serve as the reference.
        object.__setattr__(self, "center", min(self.center, self.mu))

    def __add__(self, other: "Price") -> "Price":
        """Adds the prices of two answers: bits and pure epsilon add, mu adds in squares."""
        return Price(
            self.bits + other.bits,
            math.hypot(self.mu, other.mu),
            self.pure + other.pure,
            math.hypot(self.center, other.center),
        )

    def __mul__(self, answers: int) -> "Price":
        """Prices ``answers`` answers, each of which may be chosen after seeing the ones before."""
        count = whole("answers", answers, low=0)
        if count == 0:
            return FREE
        root = math.sqrt(count)
        return Price(self.bits * count, self.mu * root, self.pure * count, self.center * root)

    def capped(self, other: "Price") -> "Price":
        """Prices a chain of two stages: what follows cannot give away more (data processing)."""
        return Price(
            min(self.bits, other.bits),
            min(self.mu, other.mu),
            min(self.pure, other.pure),
            min(self.center, other.center),
        )

    def reconstruction(self, prior: float) -> float:
        """Bounds any adversary's chance of success, given ``prior``, its chance without answers.

        ``prior`` is the largest prior mass of a set of secrets that counts as success.
        Guarantee: success <= min(1, prior 2^bits, Phi(Phi^-1(prior) + center),
        prior / (prior + (1 - prior) e^-pure)).
        """
        kappa = fraction("prior", prior)
        if self == Price():
            return 1.0  # nothing is proven, not even of a prior of 0
        odds = kappa / (kappa + (1 - kappa) * math.exp(-self.pure)) if kappa else 0.0
        return min(1.0, kappa * _power_of_two(self.bits), _shifted(kappa, self.center), odds)

    def distinguish(self, fpr: float) -> float:
        """Bounds the true-positive rate at ``fpr`` of any test between two worlds.

        Guarantee: TPR <= min(1, Phi(Phi^-1(fpr) + mu), fpr + 2^bits - 1, fpr e^pure,
        1 - (1 - fpr) e^-pure); the third term is the total variation that ``bits`` allow.
        """
        rate = fraction("fpr", fpr)
        by_bits = rate + _power_of_two(self.bits) - 1
        least = math.exp(-self.pure)
        by_odds = min(rate / least if least else 1.0, 1 - (1 - rate) * least)
        return min(1.0, by_bits, _shifted(rate, self.mu), by_odds)

    def delta(self, epsilon: float) -> float:
        """Returns the least delta with (epsilon, delta)-differential privacy.

        Source: Balle and Wang 2018, Theorem 8; Dong, Roth, Su 2022, Corollary 2.13; for pure
        epsilon the two-point mechanism is the worst case (Kairouz, Oh, Viswanath 2015).
        """
        if not epsilon >= 0:
            raise ConfigError(f"Expected epsilon >= 0, got {epsilon}.")
        return min(self._gaussian_delta(epsilon), self._pure_delta(epsilon))

    def _pure_delta(self, epsilon: float) -> float:
        if epsilon >= self.pure:
            return 0.0
        return -math.expm1(epsilon - self.pure) / (1 + math.exp(-self.pure))

    def _gaussian_delta(self, epsilon: float) -> float:
        if self.mu in (0.0, math.inf):
            return float(self.mu > 0)
        tails = torch.special.log_ndtr(
            torch.tensor(
                [self.mu / 2 - epsilon / self.mu, -self.mu / 2 - epsilon / self.mu],
                dtype=torch.float64,
            )
        ).tolist()
        return float(max(0.0, math.exp(tails[0]) - math.exp(epsilon + tails[1])))

    def epsilon(self, delta: float) -> float:
        """Returns the least epsilon >= 0 with (epsilon, delta)-differential privacy, to 1e-9."""
        target = fraction("delta", delta)
        if self.delta(0.0) <= target:
            return 0.0
        if math.isinf(self.pure) and (math.isinf(self.mu) or target == 0):
            return math.inf
        low, high = 0.0, 1.0
        while self.delta(high) > target:
            low, high = high, 2 * high
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if self.delta(middle) > target else (low, middle)
        return high


FREE = Price(0.0, 0.0, 0.0)
"""The price of no answer."""


def rounded_up(bound: float) -> str:
    """Writes an upper bound with two decimals, never below what is proven."""
    return "inf" if math.isinf(bound) else f"{math.ceil(bound * 100 - 1e-9) / 100:.2f}"


@dataclass(frozen=True)
class Reach:
    """Bounds what a stage can give, whatever the model says.

    radius: of an L2 ball about zero (for probabilities, about the even row) that holds every row.
    named: how many classes of a row may differ from the rest, which share what is left evenly;
        None when every class has a value of its own.
    box: ends between which every number lies.
    """

    radius: float = math.inf
    named: int | None = None
    box: tuple[float, float] = (-math.inf, math.inf)

    @property
    def half_width(self) -> float:
        """Bounds how far one number lies from its center."""
        low, high = self.box
        return min(self.radius, (high - low) / 2)

    def on_grid(self, step: float) -> "Reach":
        """Bounds what is left after every number is cut toward zero to a multiple of ``step``.

        A ball about zero still holds it; a box that does not hold zero may grow.
        """
        low, high = (end if math.isinf(end) else math.trunc(end / step) * step for end in self.box)
        return Reach(self.radius, self.named, (low, high))

    def norms(self, classes: int) -> tuple[float, float]:
        """Bounds the distances of a row from its center, in L1 and in L2."""
        in_l2 = min(self.radius, math.sqrt(classes) * self.half_width)
        return min(classes * self.half_width, math.sqrt(classes) * in_l2), in_l2


def label_bits(classes: int, bins: int = 1) -> float:
    """Counts the answers of a label with one of ``bins`` confidences: log2(K b) bits."""
    return math.log2(classes * bins)


def grid_bits(classes: int, ticks: int, named: int | None = None) -> float:
    """Counts the distributions on a grid of step 1/``ticks``, in bits.

    All classes: log2 C(m + K - 1, K - 1). ``named`` classes, and the rest of them as one entry
    that they share evenly: log2 C(K, k) + log2 C(m + k, k).
    """
    if named is None or named >= classes - 1:
        return _log2_choose(ticks + classes - 1, classes - 1)
    return _log2_choose(classes, named) + _log2_choose(ticks + named, named)


def gaussian_price(classes: int, reach: Reach, deviation: float) -> Price:
    """Prices a row within ``reach`` released with Gaussian noise in every coordinate.

    mu = 2 radius / deviation. bits = log2 of the integral of max over the ball of the noise's
    density, which is the Wills functional: sum_j V_j(ball) (sqrt(2 pi) deviation)^-j with the
    ball's intrinsic volumes V_j = C(n, j) radius^j kappa_n / kappa_(n-j) and kappa_n the volume
    of the unit ball (Hadwiger 1975); of a box, V_j = C(n, j) (2 half-width)^j.
    """
    _, radius = reach.norms(classes)
    if not math.isfinite(radius):
        return Price()
    size = torch.tensor(float(classes), dtype=torch.float64)
    order = torch.arange(classes + 1, dtype=torch.float64)
    log_terms = (
        _log_choose(size, order)
        + _log_unit_ball(size)
        - _log_unit_ball(size - order)
        + order * math.log(radius / (math.sqrt(2 * math.pi) * deviation))
    )
    ball = float(torch.logsumexp(log_terms, 0)) / math.log(2)
    box = classes * math.log2(1 + 2 * reach.half_width / (math.sqrt(2 * math.pi) * deviation))
    bits = max(0.0, min(ball, box))
    return Price(bits, 2 * radius / deviation, center=radius / deviation)


def laplace_price(classes: int, reach: Reach, scale: float) -> Price:
    """Prices a row within ``reach`` released with Laplace noise in every coordinate.

    pure = 2 L1 / scale with L1 the row's greatest distance from its center. bits: a coordinate
    in an interval of half-width r has the integral 1 + r / scale of the greatest density; and
    every density is at most e^(L1 / scale) times that at the center.
    """
    in_l1, _ = reach.norms(classes)
    if not math.isfinite(in_l1):
        return Price()
    by_box = classes * math.log2(1 + reach.half_width / scale)
    return pure_price(2 * in_l1 / scale, bits=min(by_box, in_l1 / scale / math.log(2)))


def pure_price(epsilon: float, *, bits: float = math.inf, answers: float = math.inf) -> Price:
    """Prices an (epsilon, 0)-differentially private mechanism with ``answers`` possible answers.

    mu: the trade-off curve of pure epsilon has its corner at error rates 1/(1 + e^epsilon), and
    the Gaussian curve through that corner lies below it everywhere, as both are convex and meet
    at (0, 1) and (1, 0). bits <= epsilon log2 e, and <= log2 M e^epsilon / (e^epsilon + M - 1)
    for M answers: the answers' greatest probabilities g satisfy 1 >= g_y + e^-epsilon (sum - g_y).
    """
    mu = -2 * _NORMAL.inv_cdf(1 / (1 + math.exp(epsilon))) if epsilon < 700 else math.inf
    counted = math.inf
    if math.isfinite(answers):
        counted = -math.log2(1 / answers + (1 - 1 / answers) * math.exp(-epsilon))
    return Price(min(bits, counted, epsilon / math.log(2)), max(0.0, mu), epsilon)


def _power_of_two(bits: float) -> float:
    """Returns 2^bits, or a number above every 1/prior where that would overflow."""
    return math.pow(2, bits) if bits < 1000 else sys.float_info.max


def _shifted(rate: float, shift: float) -> float:
    """Returns Phi(Phi^-1(rate) + shift), without the cancellation of 1 + erf in the far tail."""
    if shift == math.inf:
        return 1.0
    if rate in (0.0, 1.0):
        return rate
    return max(rate, 0.5 * math.erfc(-(_NORMAL.inv_cdf(rate) + shift) / math.sqrt(2)))


def _log2_choose(total: int, chosen: int) -> float:
    size, part = torch.tensor([total, chosen], dtype=torch.float64)
    return float(_log_choose(size, part)) / math.log(2)


def _log_choose(total: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return torch.lgamma(total + 1) - torch.lgamma(chosen + 1) - torch.lgamma(total - chosen + 1)


def _log_unit_ball(dimension: torch.Tensor) -> torch.Tensor:
    return dimension / 2 * math.log(math.pi) - torch.lgamma(dimension / 2 + 1)
