"""Few shadows: what they leave open of a record is borrowed from records like it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from shieldnet.attacks.membership import borrowing
from shieldnet.attacks.membership.borrowing import lira_borrowing
from shieldnet.attacks.membership.likelihood import lira, lira_offline
from shieldnet.core.statistics import auc


def answers(shadows: int, rows: int = 1500, gap: float = 2.0, seed: int = 0) -> tuple[Tensor, ...]:
    """Draws what a target and shadows say: hard records move further, as they do in models."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(4, 3, rows)
    moved = gap * np.exp(-ease / 5) * rng.lognormal(0, 0.3, rows)
    inside, truth = rng.random((shadows, rows)) < 0.5, rng.random(rows) < 0.5
    said = ease + moved * truth + rng.normal(0, 1, rows)
    heard = ease + moved * inside + rng.normal(0, 1, (shadows, rows))
    return tuple(torch.from_numpy(part) for part in (said, heard, inside, truth))


def reached(score: Tensor, truth: Tensor) -> float:
    return auc(score[truth], score[~truth]).value


def test_four_shadows_with_borrowing_reach_what_sixteen_reach_without() -> None:
    said, heard, inside, truth = answers(16)
    plain = reached(lira(said, heard, inside), truth)
    few = said, heard[:4], inside[:4]
    assert reached(lira_borrowing(*few), truth) > plain - 0.01
    assert reached(lira_borrowing(*few), truth) > reached(lira(*few), truth) + 0.02


def test_the_proxy_reads_no_shadow_that_was_trained_on_the_record() -> None:
    """The record's own answers inside may say anything; they change no score of its own."""
    said, heard, inside, truth = answers(8)
    before = lira_borrowing(said, heard, inside, online=False)
    row = int((inside.sum(0) == 4).nonzero()[0])
    heard[inside[:, row], row] *= torch.tensor([50.0, -20.0, 3.0, 1.0], dtype=heard.dtype)
    after = lira_borrowing(said, heard, inside, online=False)
    assert float(after[row]) == pytest.approx(float(before[row]), abs=1e-6)
    assert not torch.equal(before, after)  # those who borrow from it
    offline = reached(lira_offline(said, heard, inside), truth)
    assert reached(before, truth) > offline + 0.01


def test_nothing_is_found_where_nothing_was_trained() -> None:
    values = []
    for seed in range(5):
        said, heard, inside, truth = answers(4, gap=0.0, seed=seed)
        for online in (True, False):
            values.append(reached(lira_borrowing(said, heard, inside, online=online), truth))
    assert np.mean(values) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("decimals", [None, 0], ids=["continuous", "discrete"])
@pytest.mark.parametrize("online", [True, False])
def test_the_order_of_records_changes_no_borrowing(decimals, online) -> None:
    said, heard, inside, _ = answers(6, rows=300)
    if decimals is not None:
        said, heard = said.round(decimals=decimals), heard.round(decimals=decimals)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    found = lira_borrowing(said, heard, inside, online=online)
    moved = lira_borrowing(said[order], heard[:, order], inside[:, order], online=online)
    assert torch.allclose(found[order], moved, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 30, 300])
@pytest.mark.parametrize("kind", ["constant", "one row apart", "in no shadow", "in every shadow"])
def test_scores_are_finite(kind, rows, online) -> None:
    said, heard, inside, _ = answers(4, rows=rows)
    if kind in ("constant", "one row apart"):
        said, heard = torch.ones_like(said), torch.ones_like(heard)
    if kind == "one row apart":
        heard[:, 0] = 700.0
    if kind.startswith("in "):
        inside[:, 0] = kind == "in every shadow"
    assert torch.isfinite(lira_borrowing(said, heard, inside, online=online)).all()


def test_all_in_every_shadow_say_nothing() -> None:
    said, heard, inside, _ = answers(4, rows=40)
    found = lira_borrowing(said, heard, torch.ones_like(inside))
    assert torch.isfinite(found).all()


def test_neighbors_are_those_next_in_order_without_the_record_itself(monkeypatch) -> None:
    monkeypatch.setattr(borrowing, "NEIGHBORS", 2)
    numbers = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0], dtype=torch.float64)
    near = borrowing._Neighbors.of(numbers)
    assert near.sums(numbers).tolist() == [4.0, 2.0, 2.0, 1.0, 3.0]
    ties = torch.tensor([1.0, 1.0, 1.0, 7.0], dtype=torch.float64)
    assert borrowing._Neighbors.of(ties).sums(torch.ones(4)).tolist() == [2.0, 2.0, 2.0, 3.0]
