"""Privacy costs: what an answer can give away, how costs add, and the bounds that follow."""

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from statistics import NormalDist

import torch

from shieldnet.core.checks import fraction, whole
from shieldnet.core.errors import ConfigError

_NORMAL = NormalDist()
_LN2 = math.log(2)
# More than the rounding error of a few float64 functions, so that bounds stay upper bounds.
_ABOVE = 1 + 1e-12


@dataclass(frozen=True)
class PrivacyCost:
    """Bounds what one answer, or a sum of answers, can give away; inf means unbounded or unknown.

    bits: maximal leakage, log2 of the sum over answers of the maximum over secrets of
        P(answer | secret); for a deterministic interface, log2 of the number of possible answers
        (Issa, Wagner, Kamath 2020).
    mu: Gaussian differential privacy between any two inputs (Dong, Roth, Su 2022).
    pure: epsilon of (epsilon, 0)-differential privacy between any two inputs.
    center: like mu, but between any input and one fixed reference; by default mu itself, and half
        of mu if all rows lie in a ball.
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
        # Any input can serve as the reference.
        object.__setattr__(self, "center", min(self.center, self.mu))

    def __add__(self, other: "PrivacyCost") -> "PrivacyCost":
        """Adds the costs of two answers: bits and pure epsilon add, mu adds in squares."""
        return PrivacyCost(
            _sum(self.bits, other.bits),
            _hypotenuse(self.mu, other.mu),
            _sum(self.pure, other.pure),
            _hypotenuse(self.center, other.center),
        )

    def __mul__(self, answers: int) -> "PrivacyCost":
        """Returns the cost of ``answers`` answers to adaptively chosen queries."""
        count = whole("answers", answers, low=0)
        if count == 0:
            return FREE
        root = _root(count)
        return PrivacyCost(
            _product(self.bits, count),
            _product(self.mu, root),
            _product(self.pure, count),
            _product(self.center, root),
        )

    def capped(self, other: "PrivacyCost") -> "PrivacyCost":
        """Returns the cost of two stages in a row: the smaller of both (data processing)."""
        return PrivacyCost(
            min(self.bits, other.bits),
            min(self.mu, other.mu),
            min(self.pure, other.pure),
            min(self.center, other.center),
        )

    def reconstruction(self, prior: float) -> float:
        """Bounds the probability that any adversary reconstructs a secret.

        prior: its probability of success without answers, in [0, 1]: the largest prior mass of a
        set of secrets that counts as success.
        Guarantee: success <= min(1, prior 2^bits, Phi(Phi^-1(prior) + center),
        prior / (prior + (1 - prior) e^-pure)).
        """
        kappa = fraction("prior", prior)
        if self == PrivacyCost():
            return 1.0  # nothing is proven, not even for a prior of 0
        bounds = _times_power(kappa, self.bits), _shifted(kappa, self.center)
        return max(kappa, min(1.0, *bounds, _with_odds(kappa, self.pure)))

    def distinguish(self, fpr: float) -> float:
        """Bounds the true-positive rate of any test between two inputs.

        fpr: the test's false-positive rate, in [0, 1].
        Guarantee: TPR <= min(1, Phi(Phi^-1(fpr) + mu), fpr + 2^bits - 1, fpr e^pure,
        1 - (1 - fpr) e^-pure); the third term is the total variation that ``bits`` allow.
        """
        rate = fraction("fpr", fpr)
        by_bits = rate + math.expm1(self.bits * _LN2) * _ABOVE if self.bits < 2 else 1.0
        least = math.exp(-self.pure)
        by_odds = min(
            rate * math.exp(self.pure) if self.pure < 700 else 1.0,
            -math.expm1(-self.pure) + rate * least,
        )
        bounds = _above(by_bits), _shifted(rate, self.mu), _above(by_odds)
        return rate if 0.0 in (self.bits, self.mu, self.pure) else max(rate, min(1.0, *bounds))

    def delta(self, epsilon: float) -> float:
        """Returns the smallest delta with (epsilon, delta)-differential privacy, rounded up.

        Source: Balle and Wang 2018, Theorem 8; Dong, Roth, Su 2022, Corollary 2.13; for pure
        epsilon the two-point mechanism is the worst case (Kairouz, Oh, Viswanath 2015).
        """
        if not epsilon >= 0:
            raise ConfigError(f"Expected epsilon >= 0, got {epsilon}.")
        if epsilon == math.inf:
            return 0.0
        return min(1.0, self._gaussian_delta(epsilon), self._pure_delta(epsilon))

    def _pure_delta(self, epsilon: float) -> float:
        if epsilon >= self.pure:
            return 0.0
        return -math.expm1(epsilon - self.pure) / (1 + math.exp(-self.pure)) * _ABOVE

    def _gaussian_delta(self, epsilon: float) -> float:
        if self.mu in (0.0, math.inf):
            return float(self.mu > 0)
        ends = [self.mu / 2 - epsilon / self.mu, -self.mu / 2 - epsilon / self.mu]
        if ends[1] == -math.inf:
            return _MIN_FLOAT  # positive, but below all floats
        upper, lower = torch.special.log_ndtr(torch.tensor(ends, dtype=torch.float64)).tolist()
        # Bounds the error of the logarithms, including the rounding of their arguments.
        slack = 1e-14 * (1 + epsilon + abs(upper) + abs(lower))
        share = -math.expm1(min(0.0, epsilon + lower - upper - slack))
        return max(_MIN_FLOAT, math.exp(min(0.0, upper + slack)) * share * _ABOVE)

    def epsilon(self, delta: float) -> float:
        """Returns the smallest epsilon >= 0 with (epsilon, delta)-differential privacy, to 1e-9."""
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


FREE = PrivacyCost(0.0, 0.0, 0.0)
"""The privacy cost of no answer."""


def rounded_up(bound: float, decimals: int = 2) -> str:
    """Formats an upper bound with so many decimals, rounded up."""
    shown = f"{bound:.{decimals}f}"
    if float(shown) >= bound:
        return shown
    return f"{Decimal(shown) + Decimal(1).scaleb(-decimals):.{decimals}f}"


@dataclass(frozen=True)
class Reach:
    """Bounds the outputs of a stage, whatever the model returns.

    radius: radius of an L2 ball around zero (for probabilities, around the uniform row) that
        contains every row.
    named: number of classes of a row with their own value, while the others share the rest evenly;
        None if every class has its own value.
    box: the smallest and largest possible number.
    """

    radius: float = math.inf
    named: int | None = None
    box: tuple[float, float] = (-math.inf, math.inf)

    @property
    def half_width(self) -> float:
        """Bounds the distance of one number from its center."""
        low, high = self.box
        return min(self.radius, (high - low) / 2)

    def on_grid(self, step: float) -> "Reach":
        """Bounds the outputs after every number is truncated toward zero to a multiple of ``step``.

        They stay in a ball around zero; a box that does not contain zero may grow.
        """
        low, high = (end if math.isinf(end) else math.trunc(end / step) * step for end in self.box)
        return Reach(self.radius, self.named, (low, high))

    def norms(self, classes: int) -> tuple[float, float]:
        """Bounds the L1 and L2 distances of a row from its center."""
        root = _root(classes)
        in_l2 = min(self.radius, _product(root, self.half_width))
        return min(_product(self.half_width, classes), _product(root, in_l2)), in_l2


def label_bits(classes: int, bins: int = 1) -> float:
    """Counts the answers that consist of a label and one of ``bins`` confidences: log2(K b)."""
    return _log2(classes * bins)


def grid_bits(classes: int, ticks: int, named: int | None = None) -> float:
    """Counts the distributions on a grid of step 1/``ticks``, in bits.

    All classes: log2 C(m + K - 1, K - 1). ``named`` classes, with one entry that the others share
    evenly: log2 C(K, k) + log2 C(m + k, k).
    """
    if named is None or named >= classes - 1:
        return _log2_choose(ticks + classes - 1, classes - 1)
    return _sum(_log2_choose(classes, named), _log2_choose(ticks + named, named))


def gaussian_cost(classes: int, reach: Reach, deviation: float) -> PrivacyCost:
    """Returns the cost of a row within ``reach`` released with Gaussian noise in every coordinate.

    mu = 2 radius / deviation. bits = log2 of the integral of max over the ball of the noise's
    density, which is the Wills functional: sum_j V_j(ball) (sqrt(2 pi) deviation)^-j with the
    ball's intrinsic volumes V_j = C(n, j) radius^j kappa_n / kappa_(n-j) and kappa_n the volume
    of the unit ball (Hadwiger 1975); of a box, V_j = C(n, j) (2 half-width)^j.
    """
    _, radius = reach.norms(classes)
    if not math.isfinite(radius):
        return PrivacyCost()
    size = torch.tensor(float(classes), dtype=torch.float64)
    order = torch.arange(classes + 1, dtype=torch.float64)
    log_terms = (
        _log_choose(size, order)
        + _log_unit_ball(size)
        - _log_unit_ball(size - order)
        + order * math.log(radius / (math.sqrt(2 * math.pi) * deviation))
    )
    size_of_terms = 1 + float(torch.lgamma(size + 1)) + float(log_terms.abs().max())
    ball = (float(torch.logsumexp(log_terms, 0)) + 1e-14 * size_of_terms) / _LN2
    sides = 2 * reach.half_width / (math.sqrt(2 * math.pi) * deviation)
    box = classes * math.log1p(sides) / _LN2 * _ABOVE
    center = _quotient(radius, deviation)
    return PrivacyCost(max(0.0, min(ball, box)), 2 * center, center=center)


def laplace_cost(classes: int, reach: Reach, scale: float) -> PrivacyCost:
    """Returns the cost of a row within ``reach`` released with Laplace noise in every coordinate.

    pure = 2 L1 / scale, where L1 is the row's largest distance from its center. bits: for a
    coordinate in an interval of half-width r, the maximum density integrates to 1 + r / scale; and
    every density is at most e^(L1 / scale) times that at the center.
    """
    in_l1, _ = reach.norms(classes)
    if not math.isfinite(in_l1):
        return PrivacyCost()
    by_box = classes * math.log1p(reach.half_width / scale) / _LN2 * _ABOVE
    distance = _quotient(in_l1, scale)
    return pure_cost(2 * distance, bits=min(by_box, distance / _LN2 * _ABOVE))


def pure_cost(epsilon: float, *, bits: float = math.inf, answers: float = math.inf) -> PrivacyCost:
    """Returns the cost of an (epsilon, 0)-differentially private mechanism.

    bits: a known bound on its bits. answers: number of possible answers.

    mu: the trade-off curve of pure epsilon has its corner at error rates 1/(1 + e^epsilon), and
    the Gaussian curve through that corner lies below it everywhere, as both are convex and meet
    at (0, 1) and (1, 0). bits <= epsilon log2 e, and <= log2 M e^epsilon / (e^epsilon + M - 1)
    for M answers: their largest probabilities g satisfy 1 >= g_y + e^-epsilon (sum - g_y).
    """
    counted = math.inf
    if math.isfinite(answers):
        counted = -math.log1p((1 - 1 / answers) * math.expm1(-epsilon)) / _LN2 * _ABOVE
    return PrivacyCost(min(bits, counted, epsilon / _LN2 * _ABOVE), _mu_of(epsilon), epsilon)


def _mu_of(epsilon: float) -> float:
    """Returns -2 Phi^-1(1 / (1 + e^epsilon)), rounded up."""
    if epsilon >= 700:
        return math.inf
    if epsilon > 0.1:
        return -2 * _NORMAL.inv_cdf(1 / (1 + math.exp(epsilon))) * _ABOVE
    # Near 1/2 a float loses the digits of its distance to 1/2, so the distance itself is used.
    half = torch.tensor(math.tanh(epsilon / 2), dtype=torch.float64)
    return 2 * math.sqrt(2) * float(torch.special.erfinv(half)) * _ABOVE


_MIN_FLOAT = math.ulp(0.0)  # stands for positive numbers below all floats
_MAX_COUNTED = 2000  # classes to choose; exact integers would take too long beyond


def _at_least(number: float, exact: Fraction) -> float:
    """Rounds up to a float that is at least ``exact``, given the nearest float."""
    return number if Fraction(number) >= exact else math.nextafter(number, math.inf)


def _above(bound: float) -> float:
    """Raises a bound by more than the rounding error of a few functions."""
    return max(bound * _ABOVE, math.nextafter(bound, math.inf))


def _sum(first: float, second: float) -> float:
    total = first + second
    return _at_least(total, Fraction(first) + Fraction(second)) if math.isfinite(total) else total


def _product(first: float, second: float) -> float:
    product = first * second
    if not math.isfinite(product):
        return product
    return _at_least(product, Fraction(first) * Fraction(second))


def _quotient(first: float, second: float) -> float:
    quotient = first / second
    if not math.isfinite(quotient):
        return quotient
    return _at_least(quotient, Fraction(first) / Fraction(second))


def _root(number: float) -> float:
    root = math.sqrt(number)
    return root if Fraction(root) ** 2 >= number else math.nextafter(root, math.inf)


def _hypotenuse(first: float, second: float) -> float:
    long = math.hypot(first, second)
    if not math.isfinite(long):
        return long
    exact = Fraction(first) ** 2 + Fraction(second) ** 2
    while Fraction(long) ** 2 < exact:
        long = math.nextafter(long, math.inf)
    return long


def _times_power(rate: float, bits: float) -> float:
    """Returns min(1, rate 2^bits)."""
    if rate == 0.0 or bits == 0.0:
        return rate
    if math.log2(rate) + bits > 1:
        return 1.0
    whole_bits = math.floor(bits)
    # The exact factor first: it lifts the rate out of the subnormal floats, which round coarsely.
    return _above(math.ldexp(rate, whole_bits) * 2 ** (bits - whole_bits))


def _with_odds(rate: float, pure: float) -> float:
    """Returns rate / (rate + (1 - rate) e^-pure), rounded up."""
    if rate in (0.0, 1.0) or pure == math.inf:
        return float(rate > 0)
    against = math.log1p(-rate) - math.log(rate) - pure
    return _above(1 / (1 + math.exp(against)) if against < 700 else math.exp(-against))


def _shifted(rate: float, shift: float) -> float:
    """Returns Phi(Phi^-1(rate) + shift), rounded up, without the cancellation of 1 + erf."""
    if shift == math.inf:
        return 1.0
    if rate in (0.0, 1.0) or shift == 0.0:
        return rate
    quantile = _NORMAL.inv_cdf(rate)
    shifted = quantile + shift + 1e-14 * (1 + abs(quantile) + shift)
    return max(rate, _above(0.5 * math.erfc(-shifted / math.sqrt(2))))


def _log2(count: int) -> float:
    """Returns log2 of an integer, rounded up; exact for powers of two."""
    is_power = count & (count - 1) == 0
    return float(count.bit_length() - 1) if is_power else math.nextafter(math.log2(count), math.inf)


def _log2_choose(total: int, chosen: int) -> float:
    if min(chosen, total - chosen) <= _MAX_COUNTED:
        return _log2(math.comb(total, chosen))
    size, subset = torch.tensor([total, chosen], dtype=torch.float64)
    slack = 1e-14 * float(torch.lgamma(size + 1))
    return (float(_log_choose(size, subset)) + slack) / _LN2


def _log_choose(total: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return torch.lgamma(total + 1) - torch.lgamma(chosen + 1) - torch.lgamma(total - chosen + 1)


def _log_unit_ball(dimension: torch.Tensor) -> torch.Tensor:
    return dimension / 2 * math.log(math.pi) - torch.lgamma(dimension / 2 + 1)
