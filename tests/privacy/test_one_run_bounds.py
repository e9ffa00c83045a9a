import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri
from scipy.stats import binom

import shieldnet as sn
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.privacy.one_run_bounds import (
    best_guesses,
    best_guesses_for_mu,
    epsilon_interval,
    guessed,
    least_mu,
    refutes,
)


def run(mu: float, canaries: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns scores of a Gaussian mechanism of mu, and the coins."""
    generator = torch.Generator().manual_seed(seed)
    coins = torch.rand(canaries, generator=generator) < 0.5
    return torch.randn(canaries, generator=generator) + mu * coins, coins


def test_without_delta_the_bound_is_a_binomial_test() -> None:
    found = epsilon_interval(90, 100, 1000, 0.0).low
    assert binom.sf(89, 100, 1 / (1 + math.exp(-found))) == pytest.approx(0.025, rel=1e-6)


def test_a_coin_and_delta_are_never_told_from_nothing_in_vain() -> None:
    assert epsilon_interval(50, 100, 1000, 1e-5).low == 0
    assert epsilon_interval(100, 100, 1000, 1e-2).low < epsilon_interval(100, 100, 1000, 1e-6).low


def test_no_signal_seldom_gives_a_bound() -> None:
    guesses = best_guesses(1.0, 400, 1e-5)
    hits = sorted(guessed(*run(0.0, 400, seed), guesses) for seed in range(200))
    # 12 alarms in 200 at 2.5 % have a chance below 1 %; more hits give a higher bound.
    assert epsilon_interval(hits[-12], guesses, 400, 1e-5).low == 0
    assert epsilon_interval(guesses, guesses, 400, 1e-5).low > 0


@pytest.mark.parametrize("mu", [0.5, 1.5])
def test_bounds_stay_below_the_truth_and_are_worth_something(mu) -> None:
    guesses, few = best_guesses(mu, 1000, 1e-5), best_guesses_for_mu(mu, 1000)
    lows, mus = [], []
    for seed in range(8):
        drawn = run(mu, 1000, seed)
        right = guessed(*drawn, guesses)
        lows.append(epsilon_interval(right, guesses, 1000, 1e-5).low)
        mus.append(least_mu(guessed(*drawn, few), few, 1000, 0.025))
    assert max(lows) < PrivacyCost(mu=mu).epsilon(1e-5)
    assert max(mus) < mu
    assert np.mean(lows) > 0.15 * PrivacyCost(mu=mu).epsilon(1e-5)
    assert np.mean(mus) > 0.2 * mu


def test_the_f_dp_test_is_rarely_wrong_about_the_true_curve() -> None:
    mu, canaries = 1.0, 300
    guesses = best_guesses(mu, canaries, 1e-5)
    hits = sorted(guessed(*run(mu, canaries, seed), guesses) for seed in range(200))

    def is_refuted(right: int) -> bool:
        return refutes(lambda rate: float(ndtr(ndtri(rate) - mu)), right, guesses, canaries, 0.05)

    assert not is_refuted(hits[-17])  # at most 16 of 200 at 5 %
    assert is_refuted(guesses)


def test_a_subsampled_curve_can_be_tested_as_it_is() -> None:
    guarantee = sn.Guarantee(1.0, 0.1, 50, 1000, 1e-5)
    assert not refutes(guarantee.least_fpr, 60, 100, 1000, 0.05)
    assert refutes(guarantee.least_fpr, 100, 100, 1000, 0.05)


def test_guesses_are_chosen_from_the_claim_alone() -> None:
    assert best_guesses(0.1, 1000, 1e-5) >= best_guesses(2.0, 1000, 1e-5)
    assert best_guesses_for_mu(0.1, 300) >= best_guesses_for_mu(2.0, 300)
    with pytest.raises(sn.errors.ConfigError, match="Expected 2 to 10 guesses"):
        guessed(torch.zeros(10), torch.zeros(10, dtype=torch.bool), 11)


def test_guesses_for_mu_show_more_of_it_than_a_guess_for_every_canary() -> None:
    few, drawn = best_guesses_for_mu(1.85, 500), run(1.85, 500, 0)
    by_few, by_all = (least_mu(guessed(*drawn, r), r, 500, 0.025) for r in (few, 500))
    assert by_few > 1.2 * by_all


def test_ties_say_nothing() -> None:
    coins = torch.arange(100) % 2 == 0
    assert guessed(torch.zeros(100), coins, 100) == 50
