import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shieldnet.defenses.rounding import Round, largest_remainders
from shieldnet.defenses.truncation import TopK
from shieldnet.errors import ConfigError

ROWS = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=40).filter(lambda row: sum(row) > 0)


def normalized(row: list[float]) -> torch.Tensor:
    tensor = torch.tensor([row])
    return tensor / tensor.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("row", "ticks"),
    [
        ([0.46, 0.44, 0.10], [5, 4, 1]),
        ([0.25, 0.25, 0.25, 0.25], [4, 2, 2, 2]),
        ([0.496, 0.504], [4, 6]),
        ([0.5, 0.5], [6, 4]),
        ([1.0, 0.0], [10, 0]),
    ],
)
def test_the_table_of_the_docstring(row: list[float], ticks: list[int]) -> None:
    assert largest_remainders(torch.tensor([row]), 10).tolist() == [ticks]


@given(ROWS, st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_every_entry_is_whole_ticks_and_each_row_sums_to_all_of_them(row, digits) -> None:
    ticks = largest_remainders(normalized(row), 10**digits)
    assert torch.equal(ticks, ticks.round())
    assert (ticks >= 0).all()
    assert ticks.sum() == 10**digits


@given(ROWS, st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_the_winner_stays_the_winner_with_strictly_the_most_ticks(row, digits) -> None:
    before = normalized(row)
    ticks = largest_remainders(before, 10**digits)[0]
    winner = int(before[0].argmax())
    others = torch.cat([ticks[:winner], ticks[winner + 1 :]])
    assert ticks[winner] > others.max()


@given(ROWS, st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_rounding_a_rounded_row_changes_nothing(row, digits) -> None:
    once = Round(digits)(normalized(row))
    assert torch.equal(Round(digits)(once), once)


@given(ROWS)
@settings(max_examples=200, deadline=None)
def test_no_entry_moves_by_more_than_a_tick_and_the_crown(row) -> None:
    before = normalized(row)
    assert (largest_remainders(before, 100) / 100 - before).abs().max() <= 0.02 + 1e-6


def test_rows_still_sum_to_one_at_a_thousand_classes() -> None:
    """The peer's rounding loses up to 91 % of the mass here (rows sum to .09 to .29)."""
    rows = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0)).softmax(-1)
    assert torch.allclose(Round(2)(rows).sum(-1), torch.ones(50))


def test_cut_first_then_rounded_agrees_in_float32_and_float64() -> None:
    rows = (torch.randn(20_000, 10, generator=torch.Generator().manual_seed(0)) * 2).softmax(-1)
    narrow = Round(2)(TopK(3)(rows))
    wide = Round(2)(TopK(3)(rows.double()))
    assert (narrow.double() - wide).abs().max() < 1e-6


def test_the_price_is_the_number_of_distributions_on_the_grid() -> None:
    assert Round(1).price(10).bits == pytest.approx(math.log2(math.comb(19, 9)))
    assert Round(3).price(1000).bits == pytest.approx(math.log2(math.comb(1999, 999)))


@pytest.mark.parametrize("digits", [-1, 7, 1.5, float("nan"), True, "2"])
def test_bad_digits_are_refused_with_what_was_expected(digits) -> None:
    with pytest.raises(ConfigError, match="Expected digits from 0 to 6"):
        Round(digits)


@pytest.mark.parametrize(
    "row",
    [[0.4, 0.4 + 1e-13, 0.2 - 1e-13], [0.35, 0.35 + 1e-14, 0.3], [0.25, 0.25, 0.25 + 1e-15, 0.25]],
)
@pytest.mark.parametrize("digits", [0, 1, 2])
def test_classes_closer_than_forty_bits_never_overtake_the_winner(row, digits) -> None:
    before = torch.tensor([row], dtype=torch.float64)
    ticks = largest_remainders(before, 10**digits)
    assert (ticks >= 0).all()
    assert int(ticks.argmax()) == int(before.argmax())
    assert int((ticks == ticks.max()).sum()) == 1


def test_nearly_flat_rows_of_many_classes_keep_whole_ticks() -> None:
    rows = torch.randn(20, 200_000, generator=torch.Generator().manual_seed(0)) * 1e-6
    ticks = largest_remainders(rows.softmax(-1), 1)
    assert (ticks >= 0).all()
    assert (ticks.sum(-1) == 1).all()
