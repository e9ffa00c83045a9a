"""Each score of a text by hand."""

import math
import zlib

import pytest
import torch

from shieldnet.attacks.positions.readings import Readings
from shieldnet.attacks.positions.sequence_scores import (
    CAP,
    WINDOWS,
    base_scores,
    error_zone,
    lowest_mean,
    means_of,
    plain_scores,
    unexplained,
    window_votes,
)


def read(p: list[float], right: list[bool], counted: list[bool] | None = None) -> Readings:
    """Makes readings of one text with labels 3, 4, 5, ..."""
    log_p = torch.tensor([p], dtype=torch.float64).log()
    labels = torch.arange(3, 3 + len(p)).unsqueeze(0)
    winner = labels.where(torch.tensor([right]), 0)
    kept = torch.tensor([counted or [True] * len(p)])
    least = min(one for one in p if one > 0)
    half = torch.full_like(log_p, 0.5)
    return Readings(log_p, -half, half, winner, labels, kept, least)


TARGET = read([0.5, 0.25, 0.0, 0.9], [True, False, False, True], [True, True, True, False])
BASE = read([0.25, 0.5, 0.1, 0.1], [True, True, False, False], [True, True, True, False])
FLOOR = 0.01


def test_means_read_a_released_zero_as_the_floor_and_leave_padding_out() -> None:
    found = means_of(TARGET, FLOOR)

    assert float(found["loss"]) == pytest.approx(math.log(0.5 * 0.25 * 0.01) / 3)
    assert float(found["capped loss"]) == pytest.approx((math.log(0.5 * 0.25) + CAP) / 3)
    assert float(found["right tokens"]) == pytest.approx(1 / 3)


def test_zlib_divides_by_the_compressed_bytes_of_the_tokens() -> None:
    tokens = torch.tensor([3, 4, 5], dtype=torch.int32).numpy().tobytes()

    found = plain_scores(TARGET, FLOOR)["zlib"]

    assert float(found) == pytest.approx(math.log(0.5 * 0.25 * 0.01) / len(zlib.compress(tokens)))


def test_min_k_keeps_the_lowest_fifth_and_one_at_least() -> None:
    values = torch.arange(20.0).unsqueeze(0)
    some = torch.arange(20) >= 10

    assert float(lowest_mean(values, torch.ones(1, 20, dtype=torch.bool))) == 1.5  # 0, 1, 2, 3
    assert float(lowest_mean(values, some.unsqueeze(0))) == 10.5
    assert float(plain_scores(TARGET, FLOOR)["Min-K%"]) == pytest.approx(math.log(0.01))


def test_min_k_plus_plus_is_in_deviations_of_the_released_distribution() -> None:
    found = plain_scores(TARGET, FLOOR)["Min-K%++"]

    assert float(found) == pytest.approx((math.log(0.01) + 0.5) / 0.5)


def test_scores_beside_a_base() -> None:
    found = base_scores(TARGET, BASE, FLOOR)
    shift = [math.log(2), -math.log(2), math.log(0.1)]

    assert float(found["ratio to base"]) == pytest.approx(sum(shift) / 3)
    # The second and the third token are wrong: nothing gained there, log 20 lost.
    assert float(found["EZ"]) == pytest.approx(math.log(1e-6 / math.log(20)))
    wide = [width for width in WINDOWS if width >= 3]  # one window, whose sum is below 0
    narrow = 0.5 * 0.5  # of two windows of two tokens the first is a tie
    assert float(found["WBC"]) == pytest.approx((narrow + 0 * len(wide)) / len(WINDOWS))


def test_a_text_that_is_all_right_is_judged_by_all_of_its_tokens() -> None:
    shift, all_of_it = torch.tensor([[0.2, -0.1]]), torch.ones(1, 2, dtype=torch.bool)

    assert float(error_zone(shift, all_of_it, all_of_it)) == pytest.approx(math.log(2))


def test_votes_of_windows_do_not_see_where_padding_stands() -> None:
    torch.manual_seed(0)
    shift, some = torch.randn(4, 60), torch.rand(4, 60) < 0.5
    order = (~some).byte().argsort(dim=1, stable=True)

    in_front = window_votes(shift.gather(1, order), some.gather(1, order))

    assert window_votes(shift, some).allclose(in_front)
    slow = [
        sum(float(row[i : i + width].sum() > 0) for i in range(len(row) - width + 1))
        / (len(row) - width + 1)
        for row in (shift[0][some[0]].double(),)
        for width in (min(width, len(row)) for width in WINDOWS)
    ]
    assert float(window_votes(shift, some)[0]) == pytest.approx(sum(slow) / len(slow))


def test_what_a_line_explains_is_taken_off() -> None:
    known = torch.randn(50, 2, dtype=torch.float64)
    value = 3 + known @ torch.tensor([2.0, -1.0], dtype=torch.float64)

    assert unexplained(value + 1, known, value, known).allclose(torch.ones(50).double())
