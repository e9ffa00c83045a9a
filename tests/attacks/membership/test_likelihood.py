"""LiRA and RMIA against a reference written by hand in numpy, and where they go wrong elsewhere."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from shieldnet.attacks.membership.likelihood import (
    info_rmia,
    lira,
    lira_offline,
    rmia,
    symbol_ratio,
)
from shieldnet.core.statistics import auc, tpr_at_fpr

RNG = np.random.default_rng(0)
SHADOWS, ROWS = 24, 60
INSIDE = RNG.random((SHADOWS, ROWS)) < 0.5
SAID = RNG.normal(1, 2, ROWS)
HEARD = RNG.normal(0, 1, (SHADOWS, ROWS)) + 2 * INSIDE


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def test_lira_agrees_with_gaussians_fitted_in_numpy() -> None:
    expected = []
    for row in range(ROWS):
        inner, outer = HEARD[INSIDE[:, row], row], HEARD[~INSIDE[:, row], row]
        expected.append(
            norm.logpdf(SAID[row], inner.mean(), inner.std(ddof=1))
            - norm.logpdf(SAID[row], outer.mean(), outer.std(ddof=1))
        )
    found = lira(*tensors(SAID, HEARD, INSIDE), shrink=0.0)
    assert np.allclose(found.numpy(), expected, atol=1e-6)


def test_lira_with_one_variance_for_all_agrees_with_numpy() -> None:
    def pooled(chosen: np.ndarray) -> tuple[np.ndarray, float]:
        means = np.array([HEARD[chosen[:, row], row].mean() for row in range(ROWS)])
        squares = ((HEARD - means) ** 2)[chosen].sum()
        return means, squares / (chosen.sum(0) - 1).sum()

    (inner, inner_variance), (outer, outer_variance) = pooled(INSIDE), pooled(~INSIDE)
    expected = norm.logpdf(SAID, inner, inner_variance**0.5) - norm.logpdf(
        SAID, outer, outer_variance**0.5
    )
    found = lira(*tensors(SAID, HEARD, INSIDE), shrink=float("inf"))
    assert np.allclose(found.numpy(), expected, atol=1e-6)
    offline = lira_offline(*tensors(SAID, HEARD, INSIDE), shrink=float("inf"))
    assert np.allclose(offline.numpy(), (SAID - outer) / outer_variance**0.5, atol=1e-6)


@pytest.mark.parametrize("offline", [None, 0.3])
def test_rmia_agrees_with_its_equations_in_numpy(offline) -> None:
    p, q = RNG.random(ROWS), RNG.random((SHADOWS, ROWS))
    others, answers = RNG.random(50), RNG.random((SHADOWS, 50))
    never = np.zeros((SHADOWS, 50), dtype=bool)

    def ratio(said: np.ndarray, heard: np.ndarray, inside: np.ndarray) -> list[float]:
        found = []
        for row in range(len(said)):
            out = heard[~inside[:, row], row].mean()
            inner = heard[inside[:, row], row] if inside[:, row].any() else None
            if offline is None:
                usual = (inner.mean() + out) / 2 if inner is not None else out
            else:
                usual = ((1 + offline) * out + 1 - offline) / 2
            found.append(said[row] / usual)
        return found

    own, beaten = ratio(p, q, INSIDE), ratio(others, answers, never)
    expected = [np.mean([one / other >= 2.0 for other in beaten]) for one in own]
    found = rmia(
        *tensors(p, q, INSIDE), tuple(tensors(others, answers, never)), gamma=2.0, offline=offline
    )
    assert np.allclose(found.numpy(), expected, atol=1e-6)


def test_info_rmia_orders_records_that_rmia_takes_for_equal() -> None:
    """Of a model that is sure, hardly any record's ratio is twice another's."""
    inside = torch.from_numpy(INSIDE)
    p = 1 - torch.from_numpy(RNG.random(ROWS)) / 100
    q = 1 - torch.from_numpy(RNG.random((SHADOWS, ROWS))) / 100
    population = p, q, inside
    assert len(rmia(p, q, inside, population).unique()) == 1
    found = info_rmia(p, q, inside, population)
    assert len(found.unique()) == ROWS
    within = torch.where(inside, q, torch.nan).nanmean(0)
    without = torch.where(inside, torch.nan, q).nanmean(0)
    ratios = (p / ((within + without) / 2)).log()
    assert torch.allclose(found, ratios - ratios.mean())


def test_what_shadows_do_not_tell_is_never_taken_from_other_records() -> None:
    """A record in no shadow: the mean of other records says nothing of how hard it is."""
    inside = torch.from_numpy(INSIDE.copy())
    inside[:, 0] = False
    p, q = torch.rand(ROWS, dtype=torch.float64), torch.rand(SHADOWS, ROWS, dtype=torch.float64)
    population = torch.ones(5), torch.ones(SHADOWS, 5), torch.zeros(SHADOWS, 5, dtype=torch.bool)
    before = info_rmia(p, q, inside, population)
    q[:, 1:] = q[:, 1:].square() / 2
    after = info_rmia(p, q, inside, population)
    assert (
        float(before[0]) == float(after[0]) == pytest.approx(float((p[0] / q[:, 0].mean()).log()))
    )
    heard = torch.rand(SHADOWS, ROWS, dtype=torch.float64) + 3 * inside
    assert float(lira(heard[0], heard, inside)[0]) < 0  # as the others do who are not in it


def test_the_order_of_records_changes_no_score() -> None:
    order = torch.from_numpy(RNG.permutation(ROWS))
    said, heard, inside = tensors(SAID, HEARD, INSIDE)
    said, heard = said.sigmoid(), heard.sigmoid()
    others = said[:7], heard[:, :7], inside[:, :7]
    ways = (
        lira,
        lira_offline,
        lambda *told: symbol_ratio(*(part.round(decimals=1) for part in told[:2]), told[2]),
        lambda *told: info_rmia(*told, others),
        lambda *told: info_rmia(*told, others, offline=0.3),
    )
    for way in ways:
        moved = way(said[order], heard[:, order], inside[:, order])
        assert torch.allclose(way(said, heard, inside)[order], moved)


def test_symbol_ratios_count_what_shadows_said() -> None:
    inside = torch.tensor([[True], [True], [False], [False]])
    heard = torch.tensor([[1.0], [1.0], [0.0], [1.0]])
    said = torch.tensor([1.0])
    found = symbol_ratio(said, heard, inside, weight=1.0)
    everyone_in, everyone_out = (2 + 0.5) / 3, (1 + 0.5) / 3
    expected = np.log((2 + everyone_in) / 3) - np.log((1 + everyone_out) / 3)
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_shadows_that_all_say_the_same_give_a_finite_ratio() -> None:
    """Behind discrete answers a record's own variance is often 0."""
    heard = torch.ones(8, 30)
    heard[0, 0] = 2.0
    inside = torch.rand(8, 30, generator=torch.Generator().manual_seed(0)) < 0.5
    for found in (lira(torch.ones(30), heard, inside), lira_offline(torch.ones(30), heard, inside)):
        assert torch.isfinite(found).all()


def test_records_of_no_shadow_and_of_every_shadow_are_still_scored() -> None:
    inside = torch.from_numpy(INSIDE.copy())
    inside[:, 0], inside[:, 1] = True, False
    said, heard = tensors(SAID, HEARD)
    for found in (lira(said, heard, inside), lira_offline(said, heard, inside)):
        assert torch.isfinite(found).all()


def null_answers(seed: int, records: int, exact: bool) -> float:
    """Plays LiRA with each of 16 models as target, on yes-or-no answers that know no members."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(0.5, 0.5, records)
    heard = (rng.random((16, records)) < chance).astype(float)
    inside = rng.random((16, records)) < 0.5
    if exact:  # every record trained exactly half of the models
        inside = rng.permuted(np.arange(16)[:, None] < np.full(records, 8), axis=0)
    values = []
    for target in range(16):
        rest = np.arange(16) != target
        score = lira(*tensors(heard[target], heard[rest], inside[rest]))
        truth = torch.from_numpy(inside[target])
        values.append(auc(score[truth], score[~truth]).value)
    return float(np.mean(values))


def test_leaving_one_out_of_exact_halves_is_biased_and_independent_coins_are_not() -> None:
    """Why shadows draw records by independent coins, and targets stay apart from them."""
    biased = np.mean([null_answers(seed, 400, exact=True) for seed in range(5)])
    fair = np.mean([null_answers(seed, 400, exact=False) for seed in range(5)])
    assert biased < 0.45
    assert fair == pytest.approx(0.5, abs=0.02)


def test_clipping_probabilities_costs_the_power_at_low_false_positive_rates() -> None:
    """A peer clips p before the logit: what tells the surest records apart is gone."""
    rng = np.random.default_rng(1)
    inside = rng.random((16, 4000)) < 0.5
    truth = rng.random(4000) < 0.5
    ease = rng.normal(30, 10, 4000)
    heard = ease + rng.normal(0, 3, (16, 4000)) + 10 * inside
    said = ease + rng.normal(0, 3, 4000) + 10 * truth
    rates = []
    for clip in (np.inf, 16.1):  # log odds of p = 1 - 1e-7, where float32 ends
        score = lira(*tensors(said.clip(max=clip), heard.clip(max=clip), inside))
        rate = tpr_at_fpr(score[truth], score[~truth], 0.01)
        rates.append(rate.value)
    assert rates[0] > 5 * rates[1]
