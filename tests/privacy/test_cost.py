import itertools
import math
from fractions import Fraction

import mpmath
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from shieldnet.core.errors import ConfigError
from shieldnet.privacy.cost import (
    FREE,
    PrivacyCost,
    Reach,
    gaussian_cost,
    grid_bits,
    label_bits,
    laplace_cost,
    pure_cost,
    rounded_up,
)


def test_bits_add_and_mu_adds_in_squares() -> None:
    total = PrivacyCost(3, 3) + PrivacyCost(1, 4)
    assert (total.bits, total.mu) == (4, 5)
    assert PrivacyCost(2, 3) * 4 == PrivacyCost(8, 6)
    assert PrivacyCost() * 0 == FREE == PrivacyCost(0, 0, 0)
    assert PrivacyCost(pure=2.0) * 3 + PrivacyCost(pure=1.0) == PrivacyCost(pure=7.0)


def test_a_chain_costs_its_cheapest_stage() -> None:
    assert PrivacyCost(3, math.inf).capped(PrivacyCost(math.inf, 2)) == PrivacyCost(3, 2)


def test_unknown_is_infinite_never_nothing() -> None:
    assert PrivacyCost() == PrivacyCost(math.inf, math.inf)
    assert PrivacyCost().reconstruction(1e-9) == 1
    assert PrivacyCost().distinguish(1e-9) == 1
    assert PrivacyCost().epsilon(1e-6) == math.inf


def test_the_numbers_of_the_literature() -> None:
    assert label_bits(10) == pytest.approx(3.32, abs=0.01)
    assert label_bits(10, 4) == pytest.approx(5.32, abs=0.01)
    assert grid_bits(10, 10) == pytest.approx(16.5, abs=0.05)
    assert grid_bits(10, 100) == pytest.approx(42, abs=0.1)
    assert grid_bits(10, 1000) == pytest.approx(71, abs=0.3)
    assert grid_bits(1000, 100) == pytest.approx(479, abs=1)
    assert grid_bits(10, 10, named=3) == pytest.approx(math.log2(120 * 286))


def test_reconstruction_is_bounded_by_bits_and_by_mu() -> None:
    assert PrivacyCost(bits=3).reconstruction(1e-3) == pytest.approx(8e-3)
    ball = PrivacyCost(mu=2.0, center=1.0)
    assert ball.reconstruction(0.01) == pytest.approx(norm.cdf(norm.ppf(0.01) + 1))
    assert ball.reconstruction(0.5) == pytest.approx(0.8413, abs=1e-4)
    assert PrivacyCost(mu=2.0).center == 2.0, "any world can be the reference"
    assert (ball * 4).center == 2.0
    assert (ball + ball).center == pytest.approx(math.sqrt(2))
    assert ball.capped(PrivacyCost(bits=3)).center == 1.0
    assert PrivacyCost(bits=3).reconstruction(0.5) == 1


def test_two_worlds_are_bounded_by_mu_and_by_total_variation() -> None:
    assert PrivacyCost(mu=1.0).distinguish(0.01) == pytest.approx(norm.cdf(norm.ppf(0.01) + 1))
    assert PrivacyCost(bits=math.log2(1.25)).distinguish(0.1) == pytest.approx(0.35)


def test_delta_is_the_gaussian_privacy_profile() -> None:
    mu, epsilon = 1.3, 2.0
    worst, _ = quad(
        lambda x: max(0.0, norm.pdf(x, mu) - math.exp(epsilon) * norm.pdf(x)), -10, 14, limit=200
    )
    assert PrivacyCost(mu=mu).delta(epsilon) == pytest.approx(worst, rel=1e-6)


@pytest.mark.parametrize("mu", [0.05, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("delta", [1e-10, 1e-6, 0.01])
def test_epsilon_inverts_delta(mu: float, delta: float) -> None:
    cost = PrivacyCost(mu=mu)
    epsilon = cost.epsilon(delta)
    assert cost.delta(epsilon) <= delta * (1 + 1e-6)
    assert epsilon == 0 or cost.delta(epsilon * (1 - 1e-6)) > delta * (1 - 1e-6)


def test_bits_of_gaussian_noise_in_one_dimension_are_the_integral_of_the_best_density() -> None:
    radius, deviation = 3.0, 2.0
    best, _ = quad(
        lambda y: norm.pdf(y, min(max(y, -radius), radius), deviation), -40, 40, points=[-3, 3]
    )
    assert gaussian_cost(1, Reach(radius), deviation).bits == pytest.approx(
        math.log2(best), rel=1e-6
    )


def test_bits_of_gaussian_noise_in_two_dimensions_are_the_integral_of_the_best_density() -> None:
    radius, deviation = 3.0, 2.0

    def ring(r: float) -> float:
        distance = max(0.0, r - radius)
        return 2 * math.pi * r * math.exp(-((distance / deviation) ** 2) / 2)

    best = quad(ring, 0, 40, points=[radius])[0] / (2 * math.pi * deviation**2)
    assert gaussian_cost(2, Reach(radius), deviation).bits == pytest.approx(
        math.log2(best), rel=1e-6
    )


def test_more_noise_never_costs_more() -> None:
    costs = [gaussian_cost(10, Reach(5.0), deviation) for deviation in (0.5, 1.0, 2.0, 8.0)]
    assert all(a.bits > b.bits and a.mu > b.mu for a, b in itertools.pairwise(costs))


def test_without_a_clip_noise_has_no_cost() -> None:
    assert gaussian_cost(10, Reach(), 5.0) == PrivacyCost()


def test_the_best_guesser_stays_under_the_gaussian_ceilings() -> None:
    """Plays 64 codewords on the sphere through the noise; maximum likelihood guesses them."""
    generator = torch.Generator().manual_seed(0)
    classes, radius, deviation, codes = 10, 3.0, 2.0, 64
    words = torch.randn(codes, classes, generator=generator)
    words = radius * words / words.norm(dim=1, keepdim=True)
    secret = torch.randint(codes, (40_000,), generator=generator)
    seen = words[secret] + deviation * torch.randn(40_000, classes, generator=generator)
    right = float((torch.cdist(seen, words).argmin(1) == secret).double().mean())
    ceiling = gaussian_cost(classes, Reach(radius), deviation).reconstruction(1 / codes)
    assert 3 / codes < right < ceiling


@pytest.mark.parametrize("bits", [-1.0, math.nan])
def test_a_privacy_cost_below_nothing_never_exists(bits: float) -> None:
    with pytest.raises(ConfigError, match="Expected bits, mu and pure >= 0"):
        PrivacyCost(bits=bits)


@pytest.mark.parametrize("prior", [1e-300, 1e-30, 1e-17, 1e-9])
@pytest.mark.parametrize("mu", [0.1, 1.0, 5.0])
def test_tiny_priors_are_bounded_exactly_and_never_below_themselves(prior, mu) -> None:
    import mpmath

    with mpmath.workdps(50):
        # Phi(Phi^-1(prior) + mu/2) in 50 digits: the inverse by Newton from the float's start.
        start = norm.ppf(prior)
        quantile = mpmath.findroot(lambda x: mpmath.log(mpmath.ncdf(x)) - mpmath.log(prior), start)
        wanted = float(mpmath.ncdf(quantile + mu / 2))
    found = PrivacyCost(mu=mu, center=mu / 2).reconstruction(prior)
    assert found == pytest.approx(wanted, rel=1e-6)
    assert found >= prior


def test_an_infinite_privacy_cost_promises_nothing_even_of_nothing() -> None:
    assert PrivacyCost().reconstruction(0.0) == 1
    assert PrivacyCost().reconstruction(1e-310) == 1
    with pytest.raises(ConfigError, match="Expected epsilon >= 0, got nan"):
        PrivacyCost(mu=1).delta(math.nan)


def test_bounds_are_written_rounded_up() -> None:
    assert rounded_up(math.log2(40)) == "5.33"
    assert rounded_up(2.0) == "2.00"
    assert rounded_up(0.1234, 3) == "0.124"
    assert rounded_up(0.0001) == "0.01"
    assert rounded_up(9.999) == "10.00"
    assert rounded_up(-0.30049, 3) == "-0.300"
    assert rounded_up(math.inf) == "inf"


@pytest.mark.parametrize("bound", [1e-300, 1e-12, 0.001, 0.5000000000001, 1.005, 2.675, 4.0, 1e15])
def test_a_bound_is_never_written_below_itself(bound) -> None:
    assert bound <= float(rounded_up(bound)) <= bound + 0.0101
    assert rounded_up(4.0) == "4.00"
    assert rounded_up(2.1) == "2.10"
    assert rounded_up(math.nextafter(4.0, 5)) == "4.01"
    assert rounded_up(1e-12) == "0.01"
    assert rounded_up(0.0) == "0.00"


class TestAboveWhatIsProven:
    """Every bound is compared with fifty digits: at or above, and close."""

    ROUNDED = 1 - mpmath.mpf(2) ** -53

    @pytest.fixture(autouse=True)
    def _digits(self):
        with mpmath.workdps(60):
            yield

    @staticmethod
    def quantile(chance) -> mpmath.mpf:
        """Returns Phi^-1, by Newton's steps for its logarithm."""
        below = min(chance, 1 - chance)
        guess = mpmath.mpf(float(norm.isf(float(below)))) if below > 1e-300 else mpmath.mpf(37)
        for _ in range(12):
            tail = mpmath.erfc(guess / mpmath.sqrt(2)) / 2
            density = mpmath.exp(-(guess**2) / 2) / mpmath.sqrt(2 * mpmath.pi)
            guess += mpmath.log(tail / below) * tail / density
        return guess if chance > 0.5 else -guess

    @staticmethod
    def close(bound: float, exact, rel: float = 1e-8) -> bool:
        return exact <= bound <= exact * (1 + mpmath.mpf(rel)) + mpmath.mpf("1e-320")

    @pytest.mark.parametrize(
        "epsilon", [1e-300, 1e-15, 1e-8, 1e-3, 0.1, 0.11, 1.0, 6.0, 40.0, 600.0]
    )
    def test_mu_and_bits_of_a_pure_epsilon(self, epsilon) -> None:
        cost = pure_cost(epsilon, answers=10)
        exact = mpmath.mpf(epsilon)
        corner = 1 / (1 + mpmath.exp(exact))
        if epsilon < 1e-100:
            wanted = exact / 4 * mpmath.sqrt(2 * mpmath.pi) * 2
        else:
            wanted = -2 * self.quantile(corner)
        assert self.close(cost.mu, wanted)
        counted = -mpmath.log1p(mpmath.mpf(9) / 10 * mpmath.expm1(-exact)) / mpmath.log(2)
        assert self.close(cost.bits, min(counted, exact / mpmath.log(2)))

    @pytest.mark.parametrize("mu", [1e-9, 0.05, 1.0, 5.0, 40.0, 1e4])
    @pytest.mark.parametrize("delta", [1e-300, 1e-100, 1e-16, 1e-6])
    def test_epsilon_and_delta(self, mu, delta) -> None:
        cost = PrivacyCost(mu=mu)

        def exact_delta(epsilon: float) -> mpmath.mpf:
            ratio = mpmath.mpf(epsilon) / mu
            half = mpmath.mpf(mu) / 2
            upper = mpmath.erfc((ratio - half) / mpmath.sqrt(2)) / 2
            return upper - mpmath.exp(epsilon) * mpmath.erfc((ratio + half) / mpmath.sqrt(2)) / 2

        epsilon = cost.epsilon(delta)
        assert exact_delta(epsilon) <= delta
        assert epsilon < 1e-10 or exact_delta(epsilon * (1 - (1e-6 if mu > 1e-6 else 0.02))) > delta
        for given in (0.0, epsilon / 2, epsilon, epsilon * 3):
            assert exact_delta(given) <= cost.delta(given)

    @pytest.mark.parametrize("pure", [1e-300, 1e-9, 0.5, 20.0, 705.0])
    def test_delta_of_a_pure_epsilon(self, pure) -> None:
        cost = PrivacyCost(pure=pure)
        for share in (0.0, 0.3, 0.999999):
            exact = mpmath.mpf(pure)
            behind = mpmath.mpf(pure * share) - exact
            wanted = -mpmath.expm1(behind) / (1 + mpmath.exp(-exact))
            assert self.close(cost.delta(pure * share), wanted)

    @pytest.mark.parametrize("rate", [5e-324, 3e-310, 1e-300, 1e-30, 1e-3, 0.3, 1 - 1e-12])
    @pytest.mark.parametrize("size", [1e-300, 1e-12, 1e-3, 1.0, 30.0, 740.0, 1070.0, 1e5])
    def test_reconstruction_and_two_worlds(self, rate, size) -> None:
        chance, exact = mpmath.mpf(rate), mpmath.mpf(size)
        shifted = mpmath.erfc(-(self.quantile(chance) + exact) / mpmath.sqrt(2)) / 2
        power = mpmath.power(2, min(exact, 2000))
        odds = chance / (chance + (1 - chance) * mpmath.exp(-exact))
        tpr = min(
            chance * mpmath.exp(min(exact, 2000)),
            chance * mpmath.exp(-exact) - mpmath.expm1(-exact),
        )
        pairs = [
            (PrivacyCost(bits=size).reconstruction(rate), chance * power),
            (PrivacyCost(mu=size).reconstruction(rate), shifted),
            (PrivacyCost(pure=size).reconstruction(rate), odds),
            (
                PrivacyCost(bits=size).distinguish(rate),
                chance + mpmath.expm1(min(exact, 2000) * mpmath.log(2)),
            ),
            (PrivacyCost(mu=size).distinguish(rate), shifted),
            (PrivacyCost(pure=size).distinguish(rate), tpr),
        ]
        for bound, wanted in pairs:
            assert rate <= bound <= 1
            assert bound >= min(1, wanted) * self.ROUNDED
            close = wanted * (1 + mpmath.mpf("1e-9")) + mpmath.mpf("1e-300")
            assert size >= 700 or bound <= close

    @pytest.mark.parametrize("classes", [2, 3, 10, 1000, 100_000])
    @pytest.mark.parametrize("ticks", [1, 10, 100, 10**6])
    def test_bits_of_labels_and_grids(self, classes, ticks) -> None:
        assert self.close(label_bits(classes, ticks), mpmath.log(classes * ticks, 2))
        wanted = mpmath.log(mpmath.binomial(ticks + classes - 1, classes - 1), 2)
        assert self.close(grid_bits(classes, ticks), wanted)

    @pytest.mark.parametrize("radius", [1e-12, 0.1, 3.0])
    @pytest.mark.parametrize("classes", [1, 3, 40])
    def test_bits_and_mu_of_noise(self, radius, classes) -> None:
        noisy = gaussian_cost(classes, Reach(radius=radius), 0.7)
        exact, deviation = mpmath.mpf(radius), mpmath.mpf(0.7)
        ball = mpmath.mpf(0)
        for order in range(classes + 1):
            volumes = [
                mpmath.pi ** (mpmath.mpf(size) / 2) / mpmath.gamma(mpmath.mpf(size) / 2 + 1)
                for size in (classes, classes - order)
            ]
            scaled = (exact / (mpmath.sqrt(2 * mpmath.pi) * deviation)) ** order
            ball += mpmath.binomial(classes, order) * volumes[0] / volumes[1] * scaled
        sides = 2 * exact / (mpmath.sqrt(2 * mpmath.pi) * deviation)
        wanted = min(mpmath.log(ball, 2), classes * mpmath.log(1 + sides, 2))
        assert wanted <= noisy.bits <= wanted * (1 + 1e-9) + 1e-9
        assert Fraction(noisy.mu) >= 2 * Fraction(radius) / Fraction(0.7)
        spread = laplace_cost(classes, Reach(box=(-radius, radius)), 0.7)
        assert Fraction(spread.pure) >= 2 * classes * Fraction(radius) / Fraction(0.7)
        assert self.close(spread.pure, 2 * classes * exact / deviation)

    def test_sums_and_products(self) -> None:
        first, second = PrivacyCost(0.1, 0.1, 0.1), PrivacyCost(0.2, 0.3, 1e-20)
        total = first + second
        assert Fraction(total.bits) >= Fraction(0.1) + Fraction(0.2)
        assert Fraction(total.pure) >= Fraction(0.1) + Fraction(1e-20)
        assert Fraction(total.mu) ** 2 >= Fraction(0.1) ** 2 + Fraction(0.3) ** 2
        many = first * 7
        assert Fraction(many.bits) >= 7 * Fraction(0.1)
        assert Fraction(many.mu) ** 2 >= 7 * Fraction(0.1) ** 2
        assert (first * 49).mu <= 0.1 * 7 * (1 + 1e-15)
