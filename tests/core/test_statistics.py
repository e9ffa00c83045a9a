import numpy as np
import pytest
import torch
from scipy.stats import binomtest, mannwhitneyu, spearmanr

from shieldnet.core.errors import DataError
from shieldnet.core.statistics import (
    Interval,
    auc,
    mean,
    proportion,
    rank_correlation,
    roc,
    rows_needed,
    saved_share,
    saved_shares,
    tpr_at_fpr,
)


@pytest.mark.parametrize(("successes", "samples"), [(0, 10), (3, 10), (10, 10), (1, 447)])
def test_proportions_have_clopper_and_pearsons_interval(successes: int, samples: int) -> None:
    found = proportion(successes, samples)
    wanted = binomtest(successes, samples).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_auc_counts_ties_as_halves_like_mann_and_whitney() -> None:
    generator = torch.Generator().manual_seed(0)
    ones = torch.randint(0, 5, (80,), generator=generator).double() + 1
    others = torch.randint(0, 5, (60,), generator=generator).double()
    wanted = mannwhitneyu(ones, others).statistic / (80 * 60)
    assert auc(ones, others).value == pytest.approx(wanted)


def test_auc_is_right_when_the_lowest_scores_tie() -> None:
    ones = torch.tensor([0.0, 0.0, 0.0, 1.0])
    others = torch.tensor([0.0, 0.0, 0.0, 0.0])
    assert auc(ones, others).value == 0.625


def test_perfect_separation_is_not_certain() -> None:
    found = auc(torch.ones(20), torch.zeros(20))
    assert found.value == 1
    assert 0.8 < found.low < 0.9


def test_auc_intervals_hold_chance_in_most_null_runs() -> None:
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(300):
        found = auc(torch.randn(60, generator=generator), torch.randn(60, generator=generator))
        held += found.low <= 0.5 <= found.high
    assert held >= 0.92 * 300


def test_a_false_positive_rate_that_the_sample_cannot_tell_is_refused() -> None:
    assert rows_needed(1e-3) == 3000
    assert tpr_at_fpr(torch.rand(500), torch.rand(2999), 1e-3) is None
    assert tpr_at_fpr(torch.rand(500), torch.rand(3000), 1e-3) is not None


def test_tied_scores_at_the_threshold_do_not_count() -> None:
    found = tpr_at_fpr(torch.ones(100), torch.ones(300), 0.01)
    assert found is not None
    assert found.value == 0


def test_tpr_at_fpr_finds_members_who_stand_out() -> None:
    members = torch.cat([torch.full((30,), 9.0), torch.zeros(70)])
    found = tpr_at_fpr(members, torch.linspace(0, 1, 300), 0.01)
    assert found is not None
    assert found.value == pytest.approx(0.3)
    assert found.low < 0.3 < found.high


def test_saved_share_is_one_minus_the_ratio_of_sums() -> None:
    errors, baseline = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0])
    found = saved_share(errors, baseline, seed=0)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert saved_share(errors, torch.zeros(3), seed=0).value == 0


def test_bootstrap_intervals_hold_the_truth_in_most_runs() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for run in range(200):
        baseline = torch.tensor(rng.exponential(1.0, 200))
        errors = baseline * torch.tensor(rng.uniform(0.4, 1.0, 200))
        found = saved_share(errors, baseline, seed=run, resamples=400)
        held += found.low <= 0.3 <= found.high
    assert held >= 0.9 * 200


def test_rank_correlation_is_spearmans_with_ties() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 6, 50), rng.integers(0, 6, 50)
    found = rank_correlation(torch.tensor(one).double(), torch.tensor(other).double())
    assert found == pytest.approx(spearmanr(one, other).statistic)


def test_means_have_students_interval() -> None:
    found = mean(torch.tensor([1.0, 2.0, 3.0]))
    assert (found.value, found.low) == pytest.approx((2, 2 - 4.3027 / 3**0.5), abs=1e-3)


@pytest.mark.parametrize(("members", "nonmembers"), [(300, 300), (2000, 300), (1000, 1000)])
def test_without_a_signal_the_lower_end_at_low_fpr_is_rarely_above_it(members, nonmembers) -> None:
    generator = torch.Generator().manual_seed(0)
    runs, wrong = 300, 0
    for _ in range(runs):
        scores = torch.randn(members + nonmembers, generator=generator)
        found = tpr_at_fpr(scores[:members], scores[members:], 0.01)
        assert found is not None
        wrong += found.low > 0.01
    assert wrong <= 0.05 * runs


def test_a_strong_signal_at_low_fpr_is_found_with_a_thousand_nonmembers() -> None:
    generator = torch.Generator().manual_seed(0)
    members = torch.randn(1000, generator=generator) + 3
    found = tpr_at_fpr(members, torch.randn(1000, generator=generator), 0.01)
    assert found is not None
    assert 0.5 < found.low < 0.75 < found.high


def test_resamples_without_any_baseline_do_not_spoil_the_interval() -> None:
    errors, baseline = torch.zeros(200), torch.zeros(200)
    errors[0], baseline[0] = 1.0, 2.0
    found = saved_share(errors, baseline, seed=0)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_a_curve_is_the_rate_at_each_false_positive_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    members, others = torch.randn(2, 400, generator=generator)
    curve = roc(members + 1, others)
    assert curve.fpr[0] == pytest.approx(3 / 400)
    assert curve.fpr[-1] == curve.tpr[-1] == 1
    for fpr, tpr, low, high in zip(curve.fpr, curve.tpr, curve.low, curve.high, strict=True):
        found = tpr_at_fpr(members + 1, others, fpr)
        assert (tpr, low, high) == pytest.approx((found.value, found.low, found.high), abs=1e-6)


def test_a_band_holds_chance_at_most_rates_in_most_null_runs() -> None:
    generator = torch.Generator().manual_seed(0)
    held = total = 0
    for _ in range(100):
        curve = roc(*torch.randn(2, 300, generator=generator), points=8)
        inside = [
            low <= fpr <= high
            for fpr, low, high in zip(curve.fpr, curve.low, curve.high, strict=True)
        ]
        held, total = held + sum(inside), total + len(inside)
    assert held >= 0.95 * total


@pytest.mark.parametrize("rows", [(50, 50), (400, 60), (1000, 1000)])
@pytest.mark.parametrize("true", [0.5, 0.8, 0.99, 0.999])
def test_intervals_of_an_auc_hold_the_truth_near_the_ends_too(rows, true) -> None:
    generator = torch.Generator().manual_seed(3)
    ahead = 2**0.5 * float(torch.special.ndtri(torch.tensor(true, dtype=torch.float64)))
    runs, missed = 600, 0
    for _ in range(runs):
        found = auc(
            torch.randn(rows[0], generator=generator, dtype=torch.float64) + ahead,
            torch.randn(rows[1], generator=generator, dtype=torch.float64),
        )
        missed += not found.low <= true <= found.high
    assert missed <= 0.07 * runs


def test_scores_that_are_nearly_all_one_make_no_auc_too_sure() -> None:
    generator = torch.Generator().manual_seed(0)
    missed = 0
    for _ in range(300):
        right = (torch.rand(460, generator=generator) < 0.97).double()
        found = auc(right[:400], right[400:])
        missed += not found.low <= 0.5 <= found.high
    assert missed <= 0.07 * 300


@pytest.mark.parametrize("true", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("rows", [(30, 30), (30, 300), (200, 200)])
def test_the_worst_of_many_groups_is_rarely_above_its_truth(rows, true) -> None:
    generator = torch.Generator().manual_seed(0)
    ahead = 2**0.5 * float(torch.special.ndtri(torch.tensor(true)))
    runs, groups, wrong = 60, 20, 0
    for _ in range(runs):
        lows = [
            auc(
                torch.randn(rows[0], generator=generator) + ahead,
                torch.randn(rows[1], generator=generator),
                1 - 0.05 / groups,
            ).low
            for _ in range(groups)
        ]
        wrong += max(lows) > true
    assert wrong <= 0.07 * runs


@pytest.mark.parametrize("rows", [40, 150, 500])
def test_shares_of_skewed_errors_have_intervals_that_hold_them(rows: int) -> None:
    rng = np.random.default_rng(0)

    def drawn(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        baseline = rng.lognormal(0, 1.2, count)
        errors = baseline * 1.6 * rng.beta(1, 2, count) + 0.1 * rng.chisquare(1, count)
        return torch.tensor(errors), torch.tensor(baseline)

    errors, baseline = drawn(2_000_000)
    true = float(1 - errors.sum() / baseline.sum())
    runs = [saved_share(*drawn(rows), seed=run, resamples=400) for run in range(300)]
    assert sum(one.low <= true <= one.high for one in runs) >= 0.92 * 300


def test_every_column_has_the_share_it_has_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    errors, baseline = torch.rand(2, 60, 3, generator=generator)
    baseline[:, 2] = 0
    together = saved_shares(errors, baseline, seed=0)
    alone = [saved_share(errors[:, at], baseline[:, at], seed=0) for at in range(3)]
    for one, other in zip(together, alone, strict=True):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_two_guesses_that_differ_by_rounding_alone_save_nothing() -> None:
    baseline = torch.rand(300, generator=torch.Generator().manual_seed(0))
    found = saved_share(baseline * (1 - 1e-8), baseline, seed=0)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_one_sample_says_nothing_of_how_samples_vary() -> None:
    found = saved_share(torch.tensor([0.25]), torch.tensor([1.0]), seed=0)
    assert (found.value, found.low, found.high) == (0.75, 0.0, 1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_errors_that_are_not_finite_have_no_share(bad) -> None:
    errors = torch.stack([torch.ones(4), torch.full((4,), bad)], 1)
    with pytest.raises(DataError, match="finite errors"):
        saved_shares(errors, torch.ones(4, 2), seed=0)


@pytest.mark.parametrize(("members", "nonmembers"), [(0, 0), (0, 5), (1, 1), (1, 50), (50, 1)])
def test_a_single_row_says_nothing_of_who_scores_higher(members, nonmembers) -> None:
    assert auc(torch.ones(members), torch.zeros(nonmembers)) == Interval(0.5, 0.0, 1.0)


def test_one_record_of_many_that_is_read_is_not_surely_nothing() -> None:
    errors, baseline = torch.ones(20_000), torch.ones(20_000)
    errors[0] = 0
    found = saved_share(errors, baseline, seed=0)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high >= 1 / 20_000


def test_nobody_ranks_a_score_that_is_no_number() -> None:
    with pytest.raises(DataError, match="Expected scores without NaN"):
        auc(torch.tensor([1.0, float("nan")]), torch.tensor([0.0, 0.5]))
