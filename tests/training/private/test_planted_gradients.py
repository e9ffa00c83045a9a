import math

import pytest
import torch

from shieldnet.training.private.canaries import canary_sum, log_likelihood_ratio


def test_each_canary_that_is_drawn_adds_a_clip_norm_along_a_weight_of_its_own() -> None:
    drawn = torch.tensor([True, False, True])
    total = canary_sum(drawn, 0.5)
    assert torch.equal(total > 0, drawn)
    assert 0.499 < float(total.max()) <= 0.5


def test_no_canary_that_is_drawn_adds_nothing() -> None:
    assert torch.equal(canary_sum(torch.zeros(4, dtype=torch.bool), 1.0), torch.zeros(4).double())


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_the_score_is_the_log_of_a_ratio_of_densities(rate, noise) -> None:
    sums = torch.linspace(-3, 3, 13)
    scores = log_likelihood_ratio(sums, noise, rate)
    for seen, score in zip(sums.tolist(), scores.tolist(), strict=True):
        inside, outside = (math.exp(-((seen - mean) ** 2) / (2 * noise**2)) for mean in (1, 0))
        assert score == pytest.approx(math.log(rate * inside / outside + (1 - rate)), abs=1e-9)
