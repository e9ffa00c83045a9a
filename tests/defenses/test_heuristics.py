import math

import pytest
import torch

import shieldnet as sn
from shieldnet.defenses.heuristics import RankSwap, ReverseSigmoid, WorstCaseMemGuard

ROWS = (torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * 2).softmax(-1)


def test_reverse_sigmoid_is_the_papers_formula() -> None:
    beta, gamma = 0.7, 0.2
    row = [0.6, 0.3, 0.1]
    bent = [p - beta * (1 / (1 + math.exp(-gamma * math.log(p / (1 - p)))) - 0.5) for p in row]
    wanted = [one / sum(bent) for one in bent]
    assert ReverseSigmoid(beta, gamma)(torch.tensor([row]))[0].tolist() == pytest.approx(wanted)


def test_worst_case_memguard_ends_at_one_row_a_class_and_keeps_its_budget() -> None:
    assert len(WorstCaseMemGuard(2.0)(ROWS).round(decimals=5).unique(dim=0)) == 6
    moved = (WorstCaseMemGuard(0.3)(ROWS) - ROWS).abs().sum(1)
    assert moved.max() <= 0.3 + 1e-5
    assert WorstCaseMemGuard(0.3).cost(6).bits == math.inf


def test_the_rank_swap_keeps_the_order_and_nothing_else() -> None:
    answers = RankSwap()(ROWS)
    assert torch.equal(answers.argsort(1, descending=True), ROWS.argsort(1, descending=True)) or (
        (answers.gather(1, ROWS.argsort(1, descending=True)).diff(dim=1) <= 0).all()
    )
    again = RankSwap()(ROWS)
    assert not torch.equal(answers, again)
    assert RankSwap().cost(10).bits == pytest.approx(math.log2(math.factorial(10)))
    assert RankSwap().cost(10).bits > sn.Round(1).cost(10).bits


@pytest.mark.parametrize(
    "make",
    [lambda: ReverseSigmoid(0.0), lambda: WorstCaseMemGuard(-1.0), lambda: RankSwap(math.nan)],
)
def test_bad_settings_are_refused(make) -> None:
    with pytest.raises(sn.errors.ConfigError, match="Expected a finite"):
        make()
