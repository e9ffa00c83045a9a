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
        Roth, Su 2022). Infinite means unbounded or unknown.
    """

    bits: float = math.inf
    mu: float = math.inf

    def __post_init__(self) -> None:
        if not (self.bits >= 0 and self.mu >= 0):
            raise ConfigError(f"Expected bits >= 0 and mu >= 0, got {self.bits} and {self.mu}.")

    def __add__(self, other: "Price") -> "Price":
        """Adds the prices of two answers: bits add, mu adds in squares."""
        return Price(self.bits + other.bits, math.hypot(self.mu, other.mu))

    def __mul__(self, answers: int) -> "Price":
        """Prices ``answers`` answers, each of which may be chosen after seeing the ones before."""
        count = whole("answers", answers, low=0)
        return Price(self.bits * count, self.mu * math.sqrt(count)) if count else Price(0.0, 0.0)

    def capped(self, other: "Price") -> "Price":
        """Prices a chain of two stages: what follows cannot give away more (data processing)."""
        return Price(min(self.bits, other.bits), min(self.mu, other.mu))

    def reconstruction(self, prior: float) -> float:
        """Bounds any adversary's chance of success, given ``prior``, its chance without answers.

        ``prior`` is the largest prior mass of a set of secrets that counts as success.
        Guarantee: success <= min(1, prior 2^bits, Phi(Phi^-1(prior) + mu/2)).
        """
        kappa = fraction("prior", prior)
        if math.isinf(self.bits) and math.isinf(self.mu):
            return 1.0  # nothing is proven, not even of a prior of 0
        return min(1.0, kappa * _power_of_two(self.bits), _shifted(kappa, self.mu / 2))

    def distinguish(self, fpr: float) -> float:
        """Bounds the true-positive rate at ``fpr`` of any test between two worlds.

        Guarantee: TPR <= min(1, Phi(Phi^-1(fpr) + mu), fpr + 2^bits - 1); the last term is the
        total variation that a leakage of ``bits`` allows.
        """
        rate = fraction("fpr", fpr)
        return min(1.0, rate + _power_of_two(self.bits) - 1, _shifted(rate, self.mu))

    def delta(self, epsilon: float) -> float:
        """Returns the least delta with (epsilon, delta)-differential privacy.

        Source: Balle and Wang 2018, Theorem 8; Dong, Roth, Su 2022, Corollary 2.13.
        """
        if not epsilon >= 0:
            raise ConfigError(f"Expected epsilon >= 0, got {epsilon}.")
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
        if self.mu == math.inf or target == 0:
            return math.inf
        low, high = 0.0, 1.0
        while self.delta(high) > target:
            low, high = high, 2 * high
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if self.delta(middle) > target else (low, middle)
        return high


def rounded_up(bound: float) -> str:
    """Writes an upper bound with two decimals, never below what is proven."""
    return "inf" if math.isinf(bound) else f"{math.ceil(bound * 100 - 1e-9) / 100:.2f}"


@dataclass(frozen=True)
class Reach:
    """Bounds what a stage can give, whatever the model says.

    radius: of an L2 ball about a fixed center that holds every row.
    named: how many classes of a row may differ from the rest, which share what is left evenly;
        None when every class has a value of its own.
    """

    radius: float = math.inf
    named: int | None = None


def label_bits(classes: int, bins: int = 1) -> float:
    """Counts the answers of a label with one of ``bins`` confidences: log2(K b) bits."""
    return math.log2(classes * bins)


def grid_bits(classes: int, ticks: int, named: int | None = None) -> float:
    """Counts the distributions on a grid of step 1/``ticks``, in bits.

    All classes: log2 C(m + K - 1, K - 1). ``named`` classes and an even rest, if that is less:
    log2 C(K, k) + log2 C(m + k, k).
    """
    every = _log2_choose(ticks + classes - 1, classes - 1)
    if named is None or named >= classes:
        return every
    return min(every, _log2_choose(classes, named) + _log2_choose(ticks + named, named))


def gaussian_price(classes: int, radius: float, deviation: float) -> Price:
    """Prices a row in a ball of ``radius`` released with Gaussian noise in every coordinate.

    mu = 2 radius / deviation. bits = log2 of the integral of max over the ball of the noise's
    density, which is the Wills functional: sum_j V_j(ball) (sqrt(2 pi) deviation)^-j with the
    ball's intrinsic volumes V_j = C(n, j) radius^j kappa_n / kappa_(n-j) and kappa_n the volume
    of the unit ball (Hadwiger 1975).
    """
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
    bits = float(torch.logsumexp(log_terms, 0)) / math.log(2)
    return Price(max(0.0, bits), 2 * radius / deviation)


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
