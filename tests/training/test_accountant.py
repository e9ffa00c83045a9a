import math

import pytest

import shieldnet as sn
from shieldnet.price import Price
from shieldnet.training.accountant import noise_for


def test_full_batches_are_the_gaussian_mechanism_composed() -> None:
    guarantee = sn.Guarantee(noise=4.0, rate=1.0, steps=25, records=100, delta=1e-5)
    assert guarantee.mu == pytest.approx(5 / 4)
    assert guarantee.epsilon == Price(mu=1.25).epsilon(1e-5)
    assert guarantee.distinguish(0.01) == Price(mu=1.25).distinguish(0.01)


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps"),
    [(1.0, 1e-4, 1.0, 30), (3.0, 1e-5, 0.02, 400), (8.0, 1e-5, 0.1, 100), (0.5, 1e-6, 0.01, 50)],
)
def test_the_noise_for_an_epsilon_keeps_to_it_and_hardly_more(epsilon, delta, rate, steps) -> None:
    noise = noise_for(epsilon, delta, rate, steps)
    found = sn.Guarantee(noise, rate, steps, 1000, delta).epsilon
    assert 0.995 * epsilon < found <= epsilon


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.05, 200), (0.8, 0.02, 300)])
def test_epsilon_lies_below_renyi_and_beside_opacus_prv(noise, rate, steps) -> None:
    from opacus.accountants import PRVAccountant

    guarantee = sn.Guarantee(noise, rate, steps, 1000, 1e-5)
    assert guarantee.epsilon <= guarantee.cross_check()
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    assert guarantee.epsilon == pytest.approx(
        accountant.get_epsilon(1e-5, eps_error=0.01), abs=0.02
    )


@pytest.mark.filterwarnings("ignore:GDP accounting is experimental")
def test_opacus_gdp_would_have_under_reported_and_is_not_used() -> None:
    from opacus.accountants import GaussianAccountant

    guarantee = sn.Guarantee(1.0, 0.05, 200, 1000, 1e-5)
    accountant = GaussianAccountant()
    accountant.history = [(1.0, 0.05, 200)]
    assert accountant.get_epsilon(1e-5) < guarantee.epsilon


def test_subsampled_mu_allows_whatever_the_curve_allows() -> None:
    guarantee = sn.Guarantee(1.0, 0.05, 100, 1000, 1e-5)
    gaussian = Price(mu=guarantee.mu)
    for epsilon in (0.0, 0.5, 1.0, 2.0, 4.0):
        # Between the points of the curve, and below its last delta of 1e-10, by a little.
        assert guarantee.delta_at(epsilon) <= gaussian.delta(epsilon) * 1.01 + 1e-9
    assert guarantee.mu <= math.sqrt(100) / 1.0


@pytest.mark.parametrize("rate", [1.0, 0.05])
def test_the_least_false_positive_rate_inverts_the_greatest_true_positive_rate(rate) -> None:
    guarantee = sn.Guarantee(2.0, rate, 60, 1000, 1e-5)
    for fpr in (0.001, 0.01, 0.1, 0.5):
        assert guarantee.least_fpr(guarantee.distinguish(fpr)) == pytest.approx(fpr, rel=0.02)
        assert guarantee.distinguish(fpr) >= fpr
    assert guarantee.reconstruction(0.001) == guarantee.distinguish(0.001)
    assert 0.5 < guarantee.auc() < 1


def test_more_noise_never_costs_more() -> None:
    spent = [sn.Guarantee(noise, 0.05, 100, 1000, 1e-5).epsilon for noise in (0.7, 1.0, 2.0, 4.0)]
    assert spent == sorted(spent, reverse=True)


def test_no_steps_cost_nothing() -> None:
    guarantee = sn.Guarantee(1.0, 0.1, 0, 100, 1e-5)
    assert (guarantee.epsilon, guarantee.mu) == (0, 0)
    assert guarantee.distinguish(0.01) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"noise": 0.0}, "Expected a finite noise > 0"),
        ({"rate": 0.0}, "Expected a rate above 0"),
        ({"rate": 1.5}, "Expected rate from 0 to 1"),
        ({"steps": -1}, "Expected steps from 0 to 10000000"),
        ({"delta": 0.0}, "Expected delta above 0"),
    ],
)
def test_a_guarantee_of_nonsense_is_refused(settings, words) -> None:
    usual = {"noise": 1.0, "rate": 0.1, "steps": 10, "records": 100, "delta": 1e-5}
    with pytest.raises(sn.ConfigError, match=words):
        sn.Guarantee(**{**usual, **settings})


def test_a_guarantee_prints_what_it_proves_and_what_not() -> None:
    page = str(sn.Guarantee(4.0, 1.0, 25, 100, 1e-5))
    for words in ("epsilon", "at delta 1e-05", "mu", "TPR <=", "reconstruction", "Not covered"):
        assert words in page
