import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

import shieldnet as sn
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.privacy.one_run_bounds import (
    best_guesses,
    epsilon_interval,
    guessed,
    mu_interval,
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
    alarms = 0
    for seed in range(200):
        right = guessed(*run(0.0, 400, seed), guesses)
        alarms += epsilon_interval(right, guesses, 400, 1e-5).low > 0
    assert alarms <= 11  # of 200 at 2.5 %: more than that has a chance of 1 %


@pytest.mark.parametrize("mu", [0.5, 1.5])
def test_bounds_stay_below_the_truth_and_are_worth_something(mu) -> None:
    guesses = best_guesses(mu, 1000, 1e-5)
    lows, mus = [], []
    for seed in range(20):
        right = guessed(*run(mu, 1000, seed), guesses)
        lows.append(epsilon_interval(right, guesses, 1000, 1e-5).low)
        mus.append(mu_interval(right, guesses, 1000).low)
    assert max(lows) < PrivacyCost(mu=mu).epsilon(1e-5)
    assert max(mus) < mu
    assert np.mean(lows) > 0.15 * PrivacyCost(mu=mu).epsilon(1e-5)
    assert np.mean(mus) > 0.2 * mu


def test_the_f_dp_test_is_rarely_wrong_about_the_true_curve() -> None:
    mu, canaries = 1.0, 300
    guesses = best_guesses(mu, canaries, 1e-5)
    wrong = sum(
        refutes(
            lambda rate: float(norm.cdf(norm.ppf(rate) - mu)),
            guessed(*run(mu, canaries, seed), guesses),
            guesses,
            canaries,
            0.05,
        )
        for seed in range(200)
    )
    assert wrong <= 16  # of 200 at 5 %


def test_a_subsampled_curve_can_be_tested_as_it_is() -> None:
    guarantee = sn.Guarantee(1.0, 0.1, 50, 1000, 1e-5)
    assert not refutes(guarantee.least_fpr, 60, 100, 1000, 0.05)
    assert refutes(guarantee.least_fpr, 100, 100, 1000, 0.05)


def test_guesses_are_chosen_from_the_claim_alone() -> None:
    assert best_guesses(0.1, 1000, 1e-5) >= best_guesses(2.0, 1000, 1e-5)
    with pytest.raises(sn.errors.ConfigError, match="Expected 2 to 10 guesses"):
        guessed(torch.zeros(10), torch.zeros(10, dtype=torch.bool), 11)


def test_ties_say_nothing() -> None:
    coins = torch.arange(100) % 2 == 0
    assert guessed(torch.zeros(100), coins, 100) == 50
