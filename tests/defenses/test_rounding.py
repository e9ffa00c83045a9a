import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shieldnet.core.errors import ConfigError
from shieldnet.core.opaque_ops import lowered
from shieldnet.defenses.apportionment import total_weight
from shieldnet.defenses.largest import top
from shieldnet.defenses.named import as_tensor, dense
from shieldnet.defenses.rounding import Round, RoundTo
from shieldnet.defenses.top_k import TopK

ROWS = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=40).filter(lambda row: sum(row) > 0)


def normalized(row: list[float]) -> torch.Tensor:
    tensor = torch.tensor([row])
    return tensor / tensor.sum(-1, keepdim=True)


def ticks_of(rows: torch.Tensor, digits: int) -> torch.Tensor:
    exact = Round(digits)(rows.double()) * 10**digits
    assert (exact - exact.round()).abs().max() < 1e-6
    return exact.round()


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
    assert ticks_of(torch.tensor([row]), 1).tolist() == [ticks]


@given(ROWS, st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_every_entry_is_whole_ticks_and_each_row_sums_to_all_of_them(row, digits) -> None:
    ticks = ticks_of(normalized(row), digits)
    assert (ticks >= 0).all()
    assert ticks.sum() == 10**digits


@given(ROWS, st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_the_winner_stays_the_winner_with_strictly_the_most_ticks(row, digits) -> None:
    before = normalized(row)
    ticks = ticks_of(before, digits)[0]
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
    assert (Round(2)(before) - before).abs().max() <= 0.02 + 1e-6


def test_rows_still_sum_to_one_at_a_thousand_classes() -> None:
    """The peer's rounding loses up to 91 % of the mass here (rows sum to .09 to .29)."""
    rows = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0)).softmax(-1)
    assert torch.allclose(Round(2)(rows).sum(-1), torch.ones(50))


def test_cut_first_then_rounded_agrees_in_float32_and_float64() -> None:
    rows = (torch.randn(20_000, 10, generator=torch.Generator().manual_seed(0)) * 2).softmax(-1)
    narrow = dense(Round(2).compact(TopK(3).compact(rows)))
    wide = dense(Round(2).compact(TopK(3).compact(rows.double())))
    assert (narrow.double() - wide).abs().max() < 1e-6


def test_the_privacy_cost_is_the_number_of_distributions_on_the_grid() -> None:
    assert Round(1).cost(10).bits == pytest.approx(math.log2(math.comb(19, 9)))
    assert Round(3).cost(1000).bits == pytest.approx(math.log2(math.comb(1999, 999)))


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
    ticks = ticks_of(before, digits)
    assert (ticks >= 0).all()
    assert int(ticks.argmax()) == int(before.argmax())
    assert int((ticks == ticks.max()).sum()) == 1


def test_nearly_flat_rows_of_many_classes_keep_whole_ticks() -> None:
    rows = torch.randn(20, 200_000, generator=torch.Generator().manual_seed(0)) * 1e-6
    ticks = ticks_of(rows.softmax(-1), 0)
    assert (ticks >= 0).all()
    assert (ticks.sum(-1) == 1).all()


def test_classes_that_are_not_named_share_ticks_evenly() -> None:
    rows = torch.tensor([[0.5, 0.25, 0.05, 0.05, 0.05, 0.05, 0.05]])
    rounded = dense(Round(1).compact(TopK(2).compact(rows)))
    assert torch.allclose(rounded, torch.tensor([[0.5, 0.3, *[0.04] * 5]]), atol=1e-7) or (
        torch.allclose(rounded, torch.tensor([[0.5, 0.2, *[0.06] * 5]]), atol=1e-7)
    )


@given(ROWS, st.integers(0, 3), st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_after_a_cut_the_ticks_still_sum_up_and_the_winner_stays(row, digits, k) -> None:
    before = normalized(row).double()
    named = TopK(k, or_all=True).compact(before)
    after = dense(Round(digits).compact(named))[0]
    assert after.sum() == pytest.approx(1)
    winner = int(before[0].argmax())
    assert after[winner] > torch.cat([after[:winner], after[winner + 1 :]]).max()


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(1, 12))
@settings(max_examples=300, deadline=None)
def test_the_first_classes_of_equals_come_first(row, k) -> None:
    scores = torch.tensor([row, row[::-1]], dtype=torch.float32)
    values, places = map(as_tensor, top(scores, min(k, len(row))))
    for line, found in zip([row, row[::-1]], places.tolist(), strict=True):
        wanted = sorted(range(len(line)), key=lambda place: (-line[place], place))
        assert found == wanted[: len(found)]
    assert torch.equal(scores.gather(-1, places), values)


WIDE = [
    (7, 65, 4),
    (0, 5000, 100),
    (5, 5000, 3),
    (3, 5000, 100),
    (40, 5000, 12),
    (2, 9001, 100),
    (64, 1000, 100),
]


@pytest.mark.parametrize("spread", ["few values", "many values", "equals"])
@pytest.mark.parametrize(("count", "classes", "k"), WIDE)
def test_the_largest_of_many_classes_are_those_of_a_stable_sort(count, classes, k, spread) -> None:
    """In every order of equals, and in a graph as in the shield; a row alone as in its batch."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(count, classes, generator=generator)
    rows = {"few values": (rows * 50).floor(), "many values": rows, "equals": rows * 0}[spread]
    wanted = torch.sort(rows, dim=-1, descending=True, stable=True)
    values, places = map(as_tensor, top(rows, k))
    assert torch.equal(values, wanted.values[:, :k])
    assert torch.equal(places, wanted.indices[:, :k])
    assert torch.equal(as_tensor(top(rows[:1], k)[1]), places[:1])
    with lowered():
        values, places = top(rows, k)
    assert torch.equal(values, wanted.values[:, :k])
    assert torch.equal(places, wanted.indices[:, :k])


@pytest.mark.parametrize("classes", [3, 5000, 140_000])
def test_weights_add_up_exactly_in_pieces_of_any_size(classes) -> None:
    rows = torch.rand(3, 2, classes, generator=torch.Generator().manual_seed(0)).softmax(-1)
    wanted = (rows.double() * 2**30).floor().sum(-1, keepdim=True)
    assert torch.equal(as_tensor(total_weight(rows)), wanted.to(torch.int64))
    assert torch.equal(as_tensor(total_weight(rows[:0])), wanted[:0].to(torch.int64))


def test_regression_values_go_to_the_nearest_step_and_halves_to_the_even_one() -> None:
    values = torch.tensor([[-1.2345, -0.5, 2.3456, 0.04, -0.25, 0.75]])
    assert torch.allclose(RoundTo(0.5)(values), torch.tensor([[-1.0, -0.5, 2.5, 0.0, 0.0, 1.0]]))
    assert torch.allclose(RoundTo(0.1)(values), torch.tensor([[-1.2, -0.5, 2.3, 0.0, -0.2, 0.8]]))
