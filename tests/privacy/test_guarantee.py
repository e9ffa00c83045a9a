import math

import pytest

import shieldnet as sn
from shieldnet.privacy.calibration import calibrate_noise
from shieldnet.privacy.cost import PrivacyCost


def test_full_batches_are_the_gaussian_mechanism_composed() -> None:
    guarantee = sn.Guarantee(
        noise_multiplier=4.0, sample_rate=1.0, steps=25, records=100, delta=1e-5
    )
    assert guarantee.mu == pytest.approx(5 / 4)
    assert guarantee.epsilon == PrivacyCost(mu=1.25).epsilon(1e-5)
    assert guarantee.distinguish(0.01) == PrivacyCost(mu=1.25).distinguish(0.01)


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps"),
    [(1.0, 1e-4, 1.0, 30), (3.0, 1e-5, 0.02, 400), (8.0, 1e-5, 0.1, 100), (0.5, 1e-6, 0.01, 50)],
)
def test_the_noise_for_an_epsilon_keeps_to_it_and_hardly_more(epsilon, delta, rate, steps) -> None:
    noise = calibrate_noise(epsilon, delta, rate, steps)
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
    gaussian = PrivacyCost(mu=guarantee.mu)
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
        ({"noise_multiplier": 0.0}, "Expected a finite noise_multiplier > 0"),
        ({"sample_rate": 0.0}, "Expected a sample_rate above 0"),
        ({"sample_rate": 1.5}, "Expected sample_rate from 0 to 1"),
        ({"steps": -1}, "Expected steps from 0 to 10000000"),
        ({"delta": 0.0}, "Expected delta above 0"),
    ],
)
def test_a_guarantee_of_nonsense_is_refused(settings, words) -> None:
    usual = {
        "noise_multiplier": 1.0,
        "sample_rate": 0.1,
        "steps": 10,
        "records": 100,
        "delta": 1e-5,
    }
    with pytest.raises(sn.errors.ConfigError, match=words):
        sn.Guarantee(**{**usual, **settings})


def test_a_guarantee_prints_what_it_proves_and_what_not() -> None:
    page = str(sn.Guarantee(4.0, 1.0, 25, 100, 1e-5))
    for words in ("epsilon", "at delta 1e-05", "mu", "TPR <=", "reconstruction", "Not covered"):
        assert words in page


REFERENCES = [
    # noise, rate, steps, delta, epsilon by dp-accounting 0.5 on a grid of 1e-4
    (1.0, 0.05, 200, 1e-5, 4.76592),
    (1.0, 0.05, 200, 1e-10, 8.10098),
    (0.8, 0.02, 300, 1e-5, 3.78743),
    (0.6, 0.01, 1, 1e-5, 1.59747),
    (2.0, 0.5, 1000, 1e-6, 71.358),
]


@pytest.mark.parametrize(("noise", "rate", "steps", "delta", "epsilon"), REFERENCES)
def test_epsilon_lies_beside_dp_accounting_and_not_below(
    noise, rate, steps, delta, epsilon
) -> None:
    found = sn.Guarantee(noise, rate, steps, 1000, delta).epsilon
    assert epsilon * (1 - 1e-6) <= found <= epsilon * 1.001


@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.01), (0.5, 0.3), (5.0, 0.9), (0.2, 1e-3)])
def test_delta_of_one_step_is_the_closed_form_from_above(noise, rate) -> None:
    """With the record, against without: (1 - q) N(0) + q N(1) and N(0)."""
    from scipy.special import ndtr

    from shieldnet.privacy.losses import Losses, Steps

    losses = Losses([Steps(noise, rate, 1)])
    for epsilon in (0.0, 0.1, 0.5, 1.0, 2.0):
        place = noise**2 * math.log1p(math.expm1(epsilon) / rate) + 0.5
        with_it = (1 - rate) * ndtr(-place / noise) + rate * ndtr((1 - place) / noise)
        exact = with_it - math.exp(epsilon) * ndtr(-place / noise)
        found = losses.delta(epsilon)
        assert exact * (1 - 1e-9) <= found <= exact * 1.01 + 1e-12


def test_gaussian_steps_composed_as_losses_are_the_closed_form_from_above() -> None:
    from shieldnet.privacy.losses import Losses, Steps

    losses = Losses([Steps(4.0, 1.0, 20), Steps(8.0, 1.0, 20)])
    exact = PrivacyCost(mu=math.sqrt(20 / 16 + 20 / 64))
    for delta in (1e-3, 1e-6, 1e-12):
        assert exact.epsilon(delta) <= losses.epsilon(delta) <= exact.epsilon(delta) * 1.001


SLOW = [
    (0.1, 0.05, 200),
    (1.0, 1e-4, 10**6),
    (100.0, 0.1, 10**6),
    (0.05, 1e-3, 500),
]


@pytest.mark.parametrize(("noise", "rate", "steps"), SLOW)
def test_every_guarantee_is_counted_on_a_grid_that_stays_small(
    monkeypatch, noise, rate, steps
) -> None:
    """The first two took 34 and 47 seconds, and printing them never ended."""
    from shieldnet.privacy import losses as composition

    sizes = []
    kept = composition.irfft
    monkeypatch.setattr(
        composition, "irfft", lambda spectrum, n: sizes.append(n) or kept(spectrum, n)
    )
    guarantee = sn.Guarantee(noise, rate, steps, 1000, 1e-5)
    assert str(guarantee)
    assert 0.5 < guarantee.auc() <= 1
    assert max(sizes) <= 2**20
    assert len(sizes) <= 10
    assert math.isfinite(guarantee.epsilon)


@pytest.mark.parametrize(("noise", "steps"), [(0.01, 10**6), (0.05, 10**7)])
def test_what_promises_nothing_is_refused_before_it_takes_memory(noise, steps) -> None:
    """It asked for 18 TiB."""
    with pytest.raises(sn.errors.ConfigError, match="in the thousands and guarantee nothing"):
        str(sn.Guarantee(noise, 0.5, steps, 1000, 1e-5))


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps"),
    [(1.0, 1e-5, 1e-3, 10**4), (8.0, 1e-12, 0.01, 1000), (1000.0, 1e-5, 0.05, 200)],
)
def test_the_noise_for_an_epsilon_takes_a_few_tries(
    monkeypatch, epsilon, delta, rate, steps
) -> None:
    from shieldnet.privacy import losses as composition

    tries = []
    kept = composition.Losses
    monkeypatch.setattr(composition, "Losses", lambda steps: tries.append(steps) or kept(steps))
    calibrate_noise.cache_clear()
    noise = calibrate_noise(epsilon, delta, rate, steps)
    assert len(tries) <= 16
    assert 0.995 * epsilon < sn.Guarantee(noise, rate, steps, 1000, delta).epsilon <= epsilon


def test_an_epsilon_that_no_noise_keeps_to_is_refused() -> None:
    with pytest.raises(sn.errors.ConfigError, match="No noise of at most 10000 x clip norm meets"):
        calibrate_noise(1e-9, 1e-12, 1.0, 1000)


@pytest.mark.parametrize("rate", [1.0, 0.5, 1e-3])
@pytest.mark.parametrize("delta", [0.5, 0.9, 0.999999])
def test_epsilon_is_never_negative(rate, delta) -> None:
    guarantee = sn.Guarantee(2.0, rate, 10, 1, delta)
    assert guarantee.epsilon >= 0
    assert guarantee.cross_check() >= 0


def test_delta_counts_what_was_drawn_beside_the_ideal_law() -> None:
    ideal = sn.Guarantee(1.0, 0.05, 100, 1000, 1e-5)
    drawn = sn.Guarantee(1.0, 0.05, 100, 1000, 1e-5, variation=1e-8)
    for epsilon in (0.0, 1.0, 3.0):
        more = (1 + math.exp(epsilon)) * 1e-8
        assert drawn.delta_at(epsilon) == pytest.approx(ideal.delta_at(epsilon) + more)
    assert drawn.epsilon > ideal.epsilon
    assert drawn.delta_at(drawn.epsilon) <= 1e-5 * (1 + 1e-6)
    assert drawn.distinguish(0.01) >= ideal.distinguish(0.01) + 1e-8
    assert drawn.least_fpr(0.5) <= ideal.least_fpr(0.5) - 1e-8
    assert drawn.auc() > ideal.auc()


@pytest.mark.parametrize("rate", [1.0, 0.05])
def test_a_delta_that_draws_alone_exceed_has_no_epsilon(rate) -> None:
    """Box-Muller's tail was so: at epsilon 50 its variation counts e^50 times."""
    tail = sn.Guarantee(1.0, rate, 100, 1000, 1e-5, variation=1e-5)
    assert tail.epsilon == tail.mu == math.inf
    assert "epsilon inf" in str(tail)
    assert tail.document()["epsilon"] == "infinite"
    small = sn.Guarantee(1.0, rate, 100, 1000, 1e-5, variation=2.0**-200)
    assert small.epsilon == sn.Guarantee(1.0, rate, 100, 1000, 1e-5).epsilon


def test_guarantees_are_composed_with_those_of_the_start() -> None:
    first = sn.Guarantee(2.0, 1.0, 9, 100, 1e-5, variation=1e-20)
    both = sn.Guarantee(4.0, 1.0, 16, 100, 1e-5, before=(first,), variation=1e-20)
    assert both.mu == pytest.approx(math.hypot(1.0, 1.5))
    mixed = sn.Guarantee(1.0, 0.05, 100, 1000, 1e-5, before=(first,))
    alone = sn.Guarantee(1.0, 0.05, 100, 1000, 1e-5)
    assert max(first.epsilon, alone.epsilon) < mixed.epsilon < first.epsilon + alone.epsilon
    assert sn.Guarantee.read(mixed.document()) == mixed


def test_more_steps_and_a_smaller_delta_never_cost_less() -> None:
    costs = [sn.Guarantee(1.0, 0.01, steps, 1000, 1e-6).epsilon for steps in (1, 10, 100, 10**4)]
    assert costs == sorted(costs)
    guarantee = sn.Guarantee(1.0, 0.01, 1000, 1000, 1e-6)
    costs = [guarantee.epsilon_at(delta) for delta in (1e-3, 1e-6, 1e-9, 1e-12)]
    assert costs == sorted(costs)
