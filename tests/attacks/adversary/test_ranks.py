"""Heavy-tailed columns by their ranks."""

import pytest
import torch
from torch import Tensor, nn

from shieldnet.attacks import Game, Inversion
from shieldnet.attacks.adversary.decoders import KernelRidge, NearestNeighbors, Ridge
from shieldnet.attacks.adversary.ranks import Ranks
from shieldnet.attacks.adversary.scales import Columns
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding
from shieldnet.findings.reading import BY_RANKS, BY_VALUES
from shieldnet.shield.module import Shield

QUICK = (Ridge(), KernelRidge(), NearestNeighbors())
_NORMAL = torch.randn(900, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
HEAVY = {
    "lognormal": (2 * _NORMAL).exp(),
    "very heavy": (5 * _NORMAL).exp(),
    "negative": -(3 * _NORMAL).exp(),
    "both signs": _NORMAL.sign() * (3 * _NORMAL.abs()).exp(),
    "mostly zero": (_NORMAL - 0.8).clamp_min(0) * (2 * _NORMAL).exp(),
    "whole numbers": (3 * _NORMAL).exp().floor(),
    "huge": (2 * _NORMAL).exp() * 1e30,
}


class SaysOrder(nn.Module):
    """Says in which fifth of its values the first column lies, and nothing of the second."""

    def __init__(self, column: Tensor) -> None:
        super().__init__()
        self.edges = column.quantile(torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        step = torch.bucketize(x[:, 0].double(), self.edges).float()
        return torch.stack([step, torch.zeros_like(step) + 9], 1)


def found_in(column: Tensor, model: nn.Module, rows: int = 300) -> dict[str, Finding]:
    other = torch.randn(len(column), generator=torch.Generator().manual_seed(1))
    table = torch.stack([column.float(), other], 1)
    game = Game(
        Shield(model),
        Examples("members", table[:100]),
        Examples("nonmembers", table[100 : 100 + rows]),
        Examples("auxiliary", table[100 + rows :]),
        columns=("debt", "other"),
    )
    return {one.name: one for one in Inversion(decoders=QUICK, pictures=False)(game).findings}


@pytest.mark.parametrize("kind", HEAVY)
def test_what_is_given_away_of_a_heavy_tailed_column_is_seen(kind: str) -> None:
    found = found_in(HEAVY[kind], SaysOrder(HEAVY[kind]))
    assert found["inversion.column.debt"].low > 0.4
    assert found["inversion.column.debt"].note == BY_RANKS
    assert found["inversion.column.debt"].source.endswith((" on p", " on logits", "1e-8", "1e-3"))
    assert not found["inversion.column.other"].note.startswith("heavy")
    assert found["inversion.column.other"].low <= 0.0
    assert found["inversion"].low > 0.0


@pytest.mark.parametrize("kind", HEAVY)
def test_nothing_is_seen_of_a_heavy_tailed_column_that_is_not_answered(kind: str) -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 1], -x[:, 1]], 1)

    found = found_in(HEAVY[kind], Other())
    assert found["inversion.column.debt"].low <= 0.0
    assert found["inversion.column.other"].low > 0.5


def test_the_few_largest_values_still_count() -> None:
    column = HEAVY["lognormal"]

    class SaysRich(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rich = (x[:, 0] > column.quantile(0.9)).float()
            return torch.stack([rich, torch.zeros_like(rich) + 9], 1)

    assert found_in(column, SaysRich())["inversion.column.debt"].low > 0.1


class SaysTail(nn.Module):
    """Says the exact values of the largest, and nothing of the others."""

    def __init__(self, column: Tensor, share: float) -> None:
        super().__init__()
        self.edge, self.unit = column.quantile(1 - share).float(), column.std().float()

    def forward(self, x: Tensor) -> Tensor:
        said = ((x[:, 0] / self.unit).clamp_min(0).log1p() + 1).where(x[:, 0] > self.edge, 0.0)
        return torch.stack([said, torch.zeros_like(said) + 9], 1)


@pytest.mark.parametrize("share", [0.01, 0.02])
def test_the_values_of_the_largest_count_in_their_own_units(share: float) -> None:
    normal = torch.randn(6000, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for column in ((2 * normal).exp(), (normal * 1000).where(normal > 2.0, normal)):
        found = found_in(column, SaysTail(column, share), rows=1500)
        assert found["inversion.column.debt"].low > 0.15, found["inversion.column.debt"]
        assert found["inversion.column.debt"].note == BY_VALUES
        assert [name for name in found if name.endswith("debt")] == ["inversion.column.debt"]


@pytest.mark.parametrize("size", [1e-200, 1e-40, 1.0, 1e200])
def test_the_size_of_numbers_changes_nothing(size: float) -> None:
    rows = torch.stack([HEAVY["lognormal"], _NORMAL], 1)
    one, other = Columns.of(rows), Columns.of(rows * size)
    torch.testing.assert_close(other.apply(rows * size), one.apply(rows))
    torch.testing.assert_close(other.weights, one.weights)


@pytest.mark.parametrize("kind", HEAVY)
def test_units_of_a_heavy_tailed_column_return_to_its_values(kind: str) -> None:
    rows = torch.stack([HEAVY[kind], _NORMAL], 1)
    scale = Columns.of(rows)
    assert list(scale.ranks) == [0]
    again = scale.undo(scale.apply(rows))
    order = rows[:, 0].argsort()
    assert (again[order, 0].diff() >= 0).all()
    torch.testing.assert_close(
        scale.apply(again), scale.apply(rows).clamp(-9, 9), rtol=1e-3, atol=1e-3
    )
    assert scale.weights[0] > Columns.of(rows.sign()).weights[0] / 10


def test_columns_whose_ranks_are_no_lighter_keep_their_units() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.stack(
        [
            torch.randn(500, generator=generator),
            (torch.rand(500, generator=generator) < 0.03).float(),
            torch.rand(500, generator=generator),
            torch.ones(500),
        ],
        1,
    )
    assert not Columns.of(rows).ranks


def test_values_between_known_ones_lie_between_their_scores_and_have_a_gradient() -> None:
    ranks = Ranks.of(torch.tensor([0.0, 0.0, 1.0, 10.0, 1000.0]))
    scores = ranks.apply(torch.tensor([-5.0, 0.0, 0.5, 1.0, 5.5, 1000.0, 1e9]))
    assert (scores.diff() >= 0).all()
    assert scores[0] == scores[1]
    assert scores[-1] == scores[-2]
    asked = scores[2:5].clone().requires_grad_()
    ranks.undo(asked).sum().backward()
    assert asked.grad is not None
    assert (asked.grad > 0).all()
    torch.testing.assert_close(ranks.undo(asked).detach(), torch.tensor([0.5, 1.0, 5.5]).double())
