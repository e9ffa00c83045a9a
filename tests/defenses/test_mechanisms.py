"""Mechanisms keep what they prove: samplers, profiles, ceilings, composition."""

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare
from torch import nn

import shieldnet as sn
from shieldnet.core.exact_tables import (
    FLIP_TICKS,
    coin_table,
    gaussian_table,
    laplace_table,
)
from shieldnet.core.randomness import (
    coin_reach,
    random_words,
    replayed_noise,
    rounded_gaussian,
    rounded_laplace,
)
from shieldnet.defenses.randomized_response import _TOTAL
from shieldnet.privacy.cost import Reach, laplace_cost, pure_cost
from shieldnet.runtime import looked_up, scanned

DRAWS = 200_000


def masses(table) -> tuple[int, list[Fraction]]:
    """Returns the first integer and the exact chances of all integers of a table."""
    edges = [0, *table.exact, 2**128]
    return table.first, [Fraction(b - a, 2**128) for a, b in itertools.pairwise(edges)]


def hockey_stick(chances: list[Fraction], shift: int, epsilon: float) -> float:
    """Returns delta(epsilon) between a lattice noise and itself, ``shift`` steps away."""
    grown = Fraction(math.exp(epsilon))
    other = [*chances[shift:], *[Fraction(0)] * shift]
    one = [Fraction(0)] * shift
    forward = sum(max(Fraction(0), a - grown * b) for a, b in zip(chances, other, strict=True))
    back = sum(
        max(Fraction(0), a - grown * b)
        for a, b in zip(chances, [*one, *chances[:-shift]], strict=True)
    )
    return float(max(forward, back))


class TestLattice:
    @pytest.mark.parametrize("epsilon", [0.0, 0.25, 0.5, 1.0, 2.0, 3.0])
    @pytest.mark.parametrize("shift", [1, 8, 16])
    def test_the_privacy_profile_is_at_or_below_the_gaussians(self, epsilon, shift) -> None:
        _, chances = masses(gaussian_table(8.0))
        proven = sn.PrivacyCost(mu=shift / 8.0).delta(epsilon)
        assert hockey_stick(chances, shift, epsilon) <= proven * (1 + 1e-9) + 1e-30

    @pytest.mark.parametrize("shift", [1, 5, 16])
    def test_laplace_noise_has_no_delta_at_its_epsilon(self, shift) -> None:
        _, chances = masses(laplace_table(8.0))
        epsilon = laplace_cost(1, Reach(radius=shift / 2), 8.0).pure
        assert epsilon == pytest.approx(shift / 8.0)
        assert hockey_stick(chances, shift, epsilon) < 1e-14, "float rounding of e^epsilon alone"
        assert hockey_stick(chances, shift, epsilon * 0.9) > 1e-3, "and the bound is no larger"

    @pytest.mark.parametrize(
        ("draw", "table"), [(rounded_gaussian, gaussian_table), (rounded_laplace, laplace_table)]
    )
    def test_the_sampler_draws_what_the_table_says(self, draw, table) -> None:
        with replayed_noise(1):
            drawn = draw((DRAWS,), 4.0).long().numpy()
        first, chances = masses(table(4.0))
        expected = np.array([float(chance) for chance in chances]) * DRAWS
        observed = np.bincount(drawn - first, minlength=len(expected))
        common = expected >= 5
        wanted = np.append(expected[common], expected[~common].sum())
        seen = np.append(observed[common], observed[~common].sum())
        assert chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 1e-3

    def test_laplace_is_rounded_laplace(self) -> None:
        first, chances = masses(laplace_table(2.0))
        with mpmath.workdps(40):
            for k in (-20, -1, 0, 1, 7):
                upper = _laplace_cdf(mpmath.mpf(k) + mpmath.mpf("0.5"))
                lower = _laplace_cdf(mpmath.mpf(k) - mpmath.mpf("0.5"))
                exact = chances[k - first]
                found = mpmath.mpf(exact.numerator) / exact.denominator
                assert abs(found - (upper - lower)) < mpmath.mpf(2) ** -126

    def test_a_scan_in_constant_time_draws_the_same(self) -> None:
        words = random_words(2500).numpy().view(np.uint32)
        for table in (gaussian_table(8.0), laplace_table(3.0)):
            assert (looked_up(words, table) == scanned(words, table)).all()
        scores = torch.randn(20, 10)
        for kind in (sn.GaussianNoise, sn.LaplaceNoise):
            with replayed_noise(2):
                one = kind(2.0)(scores)
            with replayed_noise(2):
                two = kind(2.0, constant_time=True)(scores)
            assert torch.equal(one, two)

    @pytest.mark.parametrize("noise", [sn.GaussianNoise(1.0), sn.LaplaceNoise(1.0)])
    def test_the_event_that_breaks_float_noise_has_probability_zero(self, noise) -> None:
        """A float near 0 that came from 4 + noise is a multiple of 2^-23; one from 0 is not."""

        def breaks(answers: torch.Tensor) -> float:
            wide = answers.double()
            fine = (wide * 2**23) != (wide * 2**23).round()
            return float((fine & (wide.abs() < 0.25)).double().mean())

        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(DRAWS, generator=generator)
        assert breaks(drawn) > 0.05
        assert breaks(4 + drawn * 2) == 0
        with replayed_noise(0):
            for world in (0.0, 4.0, 1 / 3):
                released = noise(torch.full((DRAWS, 1), world)).double()
                assert breaks(released) == 0
                assert torch.equal(released / noise.step, (released / noise.step).round())

    @pytest.mark.parametrize("low", [0.9, -1.1])
    def test_a_range_beside_zero_is_counted_as_the_cut_leaves_it(self, low) -> None:
        box = sn.ClipRange(low, low + 0.2)
        reach = box.reach(1)
        noise = sn.LaplaceNoise(1.0, step=1.0)
        assert noise.cost(1, reach).pure == pytest.approx(1.0)
        with replayed_noise(0):
            worlds = [noise(torch.full((DRAWS, 1), low + by)) for by in (0.05, 0.15)]
        side = 1 if low > 0 else -1
        rates = [float((side * world <= 0).double().mean()) for world in worlds]
        assert abs(math.log(rates[0] / rates[1])) > 0.5 > 0.2, "more than the width alone"
        gaussian = sn.GaussianNoise(1.0, step=1.0).cost(1, reach)
        assert gaussian.mu == pytest.approx(1.0)

    @pytest.mark.parametrize("bound", [3e-7, 1e-5, 1.0, 1e30])
    def test_clip_norm_is_at_most_bound_however_large_the_row(self, bound) -> None:
        for row in (torch.tensor([[3e38]]), torch.full((1, 1000), 3e38), torch.ones(1, 3)):
            assert sn.ClipNorm(bound)(row).double().norm() <= bound

    def test_what_overflows_is_refused_before_it_becomes_a_number(self) -> None:
        integers = sn.Shield(nn.Identity(), sn.GaussianNoise(1.0, integers=True))
        for row in ([3e38, 0.0, 0.0], [1e30, -1e30, 0.0]):
            with pytest.raises(
                sn.errors.AnswerError, match="returned NaN or Inf; nothing was released"
            ):
                integers(torch.tensor([row]))
        clipped = sn.Shield(nn.Identity(), sn.ClipNorm(1.0))
        with pytest.raises(sn.errors.AnswerError, match=r"Center\(\) returned NaN or Inf"):
            clipped(torch.tensor([[3e38, 3e38, -3e38]]))

    def test_integers_are_the_floats_in_steps(self) -> None:
        scores = torch.randn(50, 4) * 3
        with replayed_noise(4):
            floats = sn.GaussianNoise(2.0)(scores)
        with replayed_noise(4):
            steps = sn.GaussianNoise(2.0, integers=True)(scores)
        assert torch.equal(steps * 2.0**-4, floats)

    @pytest.mark.parametrize("kind", [sn.GaussianNoise, sn.LaplaceNoise])
    def test_the_cut_to_the_grid_never_lengthens_a_row(self, kind) -> None:
        rows = torch.randn(100, 5, dtype=torch.float64) * 3
        grid = kind(1.0).step
        cut = (rows / grid).trunc() * grid
        assert (cut.norm(dim=1) <= rows.norm(dim=1)).all()
        assert (cut.abs().sum(1) <= rows.abs().sum(1)).all()

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"scale": 1.0, "step": 2.0**-7}, "power of two >= scale/64"),
            ({"scale": 1.0, "integers": 1}, "Expected integers to be true or false"),
            ({"scale": 1.0, "constant_time": "no"}, "Expected constant_time to be true or false"),
            ({"scale": -1.0}, "Expected a finite scale > 0"),
        ],
    )
    def test_bad_settings_are_refused(self, settings, words) -> None:
        with pytest.raises(sn.errors.ConfigError, match=words):
            sn.LaplaceNoise(**settings)


def _laplace_cdf(x: mpmath.mpf) -> mpmath.mpf:
    return mpmath.exp(x / 2) / 2 if x < 0 else 1 - mpmath.exp(-x / 2) / 2


class TestRandomizedResponse:
    @pytest.mark.parametrize("epsilon", [0.1, 1.0, 6.0, 20.0])
    @pytest.mark.parametrize("symbols", [2, 10, 40, 100_000])
    def test_the_chances_never_exceed_epsilon_not_by_a_bit(self, epsilon, symbols) -> None:
        other = sn.RandomizedResponse(epsilon).draws_of_other(symbols)
        kept = _TOTAL - (symbols - 1) * other
        with mpmath.workdps(50):
            assert mpmath.mpf(kept) / other <= mpmath.exp(mpmath.mpf(epsilon))
            assert mpmath.mpf(other) / kept <= mpmath.exp(mpmath.mpf(epsilon))
            assert kept / mpmath.mpf(other) > mpmath.exp(epsilon) * (1 - mpmath.mpf(10) ** -7)

    @pytest.mark.parametrize("bins", [1, 4])
    def test_every_symbol_comes_as_often_as_it_should(self, bins) -> None:
        defense = sn.RandomizedResponse(2.0, bins=bins)
        row = torch.tensor([[0.1, 0.7, 0.2]]).expand(DRAWS, 3)
        with replayed_noise(1):
            released = defense(row)
        truth = sn.Confidence(bins)(row[:1]) if bins > 1 else sn.Label()(row[:1])
        answers, counts = released.unique(dim=0, return_counts=True)
        assert len(answers) == 3 * bins
        kept = math.exp(2.0) / (math.exp(2.0) + 3 * bins - 1)
        is_true = torch.isclose(answers, truth).all(1)
        assert int(is_true.sum()) == 1
        expected = torch.where(is_true, kept, (1 - kept) / (3 * bins - 1)).double() * DRAWS
        expected *= DRAWS / expected.sum()
        assert chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3

    def test_the_numbers_of_the_literature(self) -> None:
        cost = sn.RandomizedResponse(4.0).cost(10)
        assert cost.pure == 4.0
        assert cost.bits == pytest.approx(3.1, abs=0.01)
        assert sn.RandomizedResponse(1.0).cost(10).bits == pytest.approx(1.2, abs=0.02)

    def test_the_best_guesser_stays_under_every_ceiling_and_reaches_the_first(self) -> None:
        """Ten inputs, ten labels, each as likely: who guesses the label it hears is the best."""
        cost = sn.RandomizedResponse(1.5).cost(10)
        secret = torch.arange(10).repeat(DRAWS // 10)
        rows = nn.functional.one_hot(secret, 10).float()
        with replayed_noise(0):
            heard = sn.RandomizedResponse(1.5)(rows).argmax(1)
        right = float((heard == secret).double().mean())
        kept = math.exp(1.5) / (math.exp(1.5) + 9)
        assert right == pytest.approx(kept, abs=0.005)
        assert right <= cost.reconstruction(1 / 10) + 0.005
        assert cost.reconstruction(1 / 10) == pytest.approx(kept)
        tpr = float((heard[secret == 3] == 3).double().mean())
        fpr = float((heard[secret == 4] == 3).double().mean())
        assert 0.9 * math.exp(1.5) * fpr < tpr <= cost.distinguish(fpr) * 1.05

    @pytest.mark.parametrize("classes", [2, 5, 10, 12, 20, 100])
    @pytest.mark.parametrize("epsilon", [0.5, 2.0, 6.0])
    def test_no_bound_is_below_what_the_believer_attains(self, epsilon, classes) -> None:
        attained = math.exp(epsilon) / (math.exp(epsilon) + classes - 1)
        cost = sn.RandomizedResponse(epsilon).cost(classes)
        assert cost.reconstruction(1 / classes) == pytest.approx(attained)
        alone = sn.PrivacyCost(mu=cost.mu, pure=cost.pure)
        assert alone.reconstruction(1 / classes) >= attained * (1 - 1e-12)

    def test_more_symbols_than_63_bits_can_tell_apart_are_refused(self) -> None:
        defense = sn.RandomizedResponse(1e-4, bins=2**20)
        with pytest.raises(sn.errors.ConfigError, match="cannot tell 1048576000 symbols apart"):
            defense.cost(1000)
        with pytest.raises(sn.errors.ConfigError, match="choose fewer bins or a larger epsilon"):
            defense(torch.full((1, 1000), 1e-3))

    def test_opendp_agrees_about_epsilon(self) -> None:
        opendp = pytest.importorskip("opendp.prelude")
        opendp.enable_features("contrib")
        for epsilon, classes in ((1.0, 4), (6.0, 10)):
            kept = (
                _TOTAL - (classes - 1) * sn.RandomizedResponse(epsilon).draws_of_other(classes)
            ) / _TOTAL
            oracle = opendp.m.make_randomized_response([str(k) for k in range(classes)], kept)
            assert oracle.map(1) == pytest.approx(epsilon, rel=1e-9)

    def test_too_large_an_epsilon_is_refused_with_the_honest_defense(self) -> None:
        with pytest.raises(
            sn.errors.ConfigError, match=r"Expected epsilon <= 32.*Label\(\) says so"
        ):
            sn.RandomizedResponse(40.0)


class TestPermuteAndFlip:
    @staticmethod
    def exact(row: list[float], epsilon: float) -> list[float]:
        """Sums over all orders, as the paper's Algorithm 1 reads."""
        ticks = [int(p * FLIP_TICKS) for p in row]
        heads = [math.exp(-epsilon * (max(ticks) - t) / (2 * FLIP_TICKS)) for t in ticks]
        chances = [0.0] * len(row)
        for order in itertools.permutations(range(len(row))):
            left = 1.0 / math.factorial(len(row))
            for place in order:
                chances[place] += left * heads[place]
                left *= 1 - heads[place]
        return chances

    def test_it_is_the_papers_mechanism(self) -> None:
        row = [0.6, 0.25, 0.1, 0.05]
        with replayed_noise(1):
            drawn = sn.PermuteAndFlip(4.0)(torch.tensor([row]).expand(DRAWS, 4)).argmax(1)
        expected = np.array(self.exact(row, 4.0)) * DRAWS
        assert chisquare(torch.bincount(drawn, minlength=4).numpy(), expected).pvalue > 1e-3

    def test_no_two_rows_differ_by_more_than_epsilon_and_some_come_near(self) -> None:
        epsilon = 2.0
        corners = [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3] * 3, [0.9, 0.1, 0]]
        found = [self.exact(row, epsilon) for row in corners]
        ratios = [a / b for one in found for two in found for a, b in zip(one, two, strict=True)]
        assert max(ratios) <= math.exp(epsilon)
        assert max(ratios) > math.exp(0.7 * epsilon)

    def test_it_names_the_winner_at_least_as_often_as_the_exponential_mechanism(self) -> None:
        for row in ([0.6, 0.3, 0.1], [1.0, 0.0, 0.0], [0.4, 0.35, 0.25]):
            weights = [math.exp(4.0 * p / 2) for p in row]
            assert self.exact(row, 4.0)[0] >= weights[0] / sum(weights) - 1e-12

    def test_the_coins_are_exact_to_128_bits(self) -> None:
        table = coin_table(6.0)
        with mpmath.workdps(60):
            for tick in (1, 17, FLIP_TICKS):
                wanted = mpmath.exp(-mpmath.mpf(6) * tick / (2 * FLIP_TICKS)) * 2**128
                assert abs(table.exact[FLIP_TICKS - tick] - wanted) <= 1

    def test_one_draw_decides_the_coins_of_every_tick(self) -> None:
        with replayed_noise(2):
            reach = coin_reach((DRAWS,), 6.0)
        assert int(reach.min()) >= 1  # the winner is always taken
        assert int(reach.max()) == FLIP_TICKS + 1
        for tick in (1, 100, 500, FLIP_TICKS):
            taken = int((tick < reach).sum())
            chance = math.exp(-6.0 * tick / (2 * FLIP_TICKS))
            assert binomtest(taken, DRAWS, chance).pvalue > 1e-4


class TestPrices:
    def test_pure_epsilon_implies_its_gaussian_and_not_a_smaller_one(self) -> None:
        for epsilon in (0.1, 1.0, 6.0, 30.0):
            cost = pure_cost(epsilon)
            corner = 1 / (1 + math.exp(epsilon))
            gaussian = sn.PrivacyCost(mu=cost.mu)
            for fpr in (corner / 3, corner, (1 + corner) / 2):
                pure = min(math.exp(epsilon) * fpr, 1 - math.exp(-epsilon) * (1 - fpr))
                assert gaussian.distinguish(fpr) >= pure * (1 - 1e-9)
            assert gaussian.distinguish(corner) == pytest.approx(1 - corner, rel=1e-6)

    def test_bits_of_laplace_noise_are_the_integral_of_the_best_density(self) -> None:
        from scipy.integrate import quad

        radius, scale = 3.0, 2.0
        best, _ = quad(
            lambda y: math.exp(-max(0.0, abs(y) - radius) / scale) / (2 * scale),
            -60,
            60,
            points=[-3, 3],
        )
        assert laplace_cost(1, Reach(radius=radius), scale).bits == pytest.approx(math.log2(best))

    def test_the_best_guesser_of_laplace_codewords_stays_under_the_ceilings(self) -> None:
        generator = torch.Generator().manual_seed(0)
        words = torch.tensor([[a, b, c] for a in (-2.0, 2) for b in (-2.0, 2) for c in (-2.0, 2)])
        secret = torch.randint(8, (20_000,), generator=generator)
        with replayed_noise(0):
            seen = sn.LaplaceNoise(2.0)(words[secret])
        right = float((torch.cdist(seen, words, p=1).argmin(1) == secret).double().mean())
        cost = laplace_cost(3, Reach(box=(-2.0, 2.0)), 2.0)
        assert 3 / 8 < right < cost.reconstruction(1 / 8)

    @pytest.mark.parametrize("queries", [1, 4, 16])
    def test_the_best_test_between_two_worlds_stays_under_its_ceiling(self, queries) -> None:
        """Antipodal rows on the ball, told apart by the sum of all answers: the optimal test."""
        noise, rows = sn.GaussianNoise(8.0, step=2.0**-6), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        clip = sn.ClipNorm(1.0)
        cost = sn.Shield(nn.Identity(), clip, noise).cost(2) * queries
        with replayed_noise(0):
            totals = [
                sum(noise(clip(row.expand(20_000, 2)))[:, 0] for _ in range(queries))
                for row in rows
            ]
        threshold = totals[1].quantile(0.9)
        fpr = float((totals[1] > threshold).double().mean())
        tpr = float((totals[0] > threshold).double().mean())
        assert fpr < tpr < cost.distinguish(fpr) + 0.01
        assert tpr > cost.distinguish(fpr) - 0.02, "and it comes near: the ceiling is tight"

    def test_opendp_agrees_about_laplace_and_gaussian_noise(self) -> None:
        opendp = pytest.importorskip("opendp.prelude")
        opendp.enable_features("contrib")
        space = opendp.atom_domain(T=float, nan=False), opendp.absolute_distance(T=float)
        laplace = opendp.m.make_laplace(*space, scale=2.0)
        gaussian = opendp.m.make_gaussian(*space, scale=2.0)
        box = Reach(box=(0.0, 3.0))
        assert laplace.map(3.0) == pytest.approx(sn.LaplaceNoise(2.0).cost(1, box).pure, rel=1e-6)
        rho = sn.GaussianNoise(2.0).cost(1, box).mu ** 2 / 2
        assert gaussian.map(3.0) == pytest.approx(rho, rel=1e-6)


class TestComposition:
    def test_many_answers_of_randomized_response_compose_far_below_their_sum(self) -> None:
        pytest.importorskip("dp_accounting")
        shield = sn.Shield(nn.Identity(), sn.RandomizedResponse(0.1))
        composed = sn.composed_epsilon(shield, queries=1000, delta=1e-6, classes=10)
        closed = shield.certificate(10, queries=1000).epsilon(1e-6)
        assert composed < closed < 100
        assert composed == pytest.approx(7.5, abs=0.1)

    def test_gaussian_noise_composes_to_the_closed_form(self) -> None:
        pytest.importorskip("dp_accounting")
        shield = sn.Shield(nn.Identity(), sn.ClipNorm(1.0), sn.GaussianNoise(8.0), sn.Label())
        composed = sn.composed_epsilon(shield, queries=30, delta=1e-6, classes=4)
        closed = shield.certificate(4, queries=30).epsilon(1e-6)
        assert composed == pytest.approx(closed, rel=1e-3)

    def test_pure_mechanisms_compose_below_the_closed_form(self) -> None:
        pytest.importorskip("dp_accounting")
        for chain in ((sn.ClipNorm(1.0), sn.LaplaceNoise(16.0)), (sn.PermuteAndFlip(0.2),)):
            shield = sn.Shield(nn.Identity(), *chain)
            composed = sn.composed_epsilon(shield, queries=50, delta=1e-6, classes=4)
            assert 0 < composed <= shield.certificate(4, queries=50).epsilon(1e-6) * (1 + 1e-6)

    def test_without_a_mechanism_there_is_nothing_to_compose(self) -> None:
        with pytest.raises(
            sn.errors.ConfigError,
            match="Nothing is proven of Identity .* takes a mechanism",
        ):
            sn.composed_epsilon(sn.harden(nn.Identity()), queries=3, delta=1e-6, classes=4)

    def test_the_certified_preset_is_certified_and_nearly_always_right(self) -> None:
        shield = sn.harden(nn.Identity(), "certified")
        scores = torch.randn(5000, 10) * 5
        with replayed_noise(0):
            agrees = (shield(scores).argmax(1) == scores.argmax(1)).double().mean()
        assert float(agrees) == pytest.approx(math.exp(6) / (math.exp(6) + 9), abs=0.01)
        assert shield.certificate().pure == 6.0
        assert shield.certificate().epsilon(0.0) == pytest.approx(6.0, abs=1e-6)
        assert "epsilon 6.00: (epsilon, 0)-differential privacy" in str(shield.certificate())
