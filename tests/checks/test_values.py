"""How far released values lie from a regression's targets."""

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.attacks import Game
from shieldnet.checks import Memorization
from shieldnet.checks.values import accuracy_of_values
from shieldnet.data.examples import Examples, Group

X = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))


class First(nn.Module):
    """Gives the first columns."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, : self.outputs]


def measured(targets: torch.Tensor, *chain: sn.Defense, groups=()) -> tuple[dict, list[str]]:
    outputs = 1 if targets.dim() == 1 else targets.shape[1]
    examples = Examples("nonmembers", X[: len(targets)], targets, has_targets=True)
    shield = sn.Shield(First(outputs), *chain, outputs="values")
    untested: list[str] = []
    game = Game(shield, examples, examples, groups=groups)
    return {one.name: one for one in accuracy_of_values(game, untested)}, untested


def test_r2_and_mae_are_the_textbooks() -> None:
    from sklearn.metrics import mean_absolute_error, r2_score

    for targets in (X[:, 0] + NOISE[:, 0], X[:, :2] * torch.tensor([1.0, 100.0]) + NOISE):
        found, untested = measured(targets)
        answers = X[:, : 1 if targets.dim() == 1 else 2]
        truth = targets.reshape(200, -1)
        assert found["r2"].value == pytest.approx(r2_score(truth, answers), abs=1e-6)
        assert found["mae"].value == pytest.approx(mean_absolute_error(truth, answers), abs=1e-5)
        assert found["r2"].low < found["r2"].value < found["r2"].high
        assert found["r2"].baseline == 0
        middle = truth.median(0).values.expand_as(truth)
        assert found["mae"].baseline == pytest.approx(float((truth - middle).abs().mean()))
        assert untested == []


def test_a_target_that_does_not_vary_has_no_r2_and_is_named() -> None:
    found, untested = measured(torch.full((200,), 2.0))
    assert set(found) == {"mae"}
    assert untested == ["r2: the target is the same in every row, R2 is not defined"]
    found, untested = measured(torch.stack([X[:, 0], torch.full((200,), 2.0)], 1))
    assert found["r2"].value == pytest.approx(1.0)
    assert untested == ["r2: the target of output 1 is the same in every row, R2 is not defined"]


def test_groups_have_their_own_r2_and_few_rows_none() -> None:
    low = X[:, 1] < 0
    targets = torch.where(low, X[:, 0], X[:, 0] + 3 * NOISE[:, 0])
    nobody = torch.zeros(200, dtype=torch.bool)
    groups = (Group("low", low, low), Group("high", ~low, ~low), Group("none", nobody, nobody))
    found, untested = measured(targets, groups=groups)
    assert found["r2.group.low"].value == pytest.approx(1.0)
    assert found["r2.group.high"].value < 0.5
    assert untested == ["r2.group.none: needs 3 nonmembers, there are 0"]
    found, untested = measured(targets[:1])
    assert not found
    assert len(untested) == 2


def test_memorization_is_the_squared_gradient_of_the_squared_error() -> None:
    layer = nn.Linear(3, 2)
    targets = torch.cat([X[:, :1], 100 * X[:, 1:2]], 1) + NOISE
    members, nonmembers = (
        Examples(name, X[rows], targets[rows], has_targets=True)
        for name, rows in (("members", slice(100)), ("nonmembers", slice(100, 200)))
    )
    game = Game(sn.Shield(layer, outputs="values"), members, nonmembers)
    found = {one.name: one for one in Memorization()(game).findings}
    missed = (layer(X).detach() - targets).double()
    unit = missed.abs().mean(0)  # up to a factor, which no share and no rank shows
    influence = X.double().square().sum(1) * (missed / unit).square().sum(1)
    top = influence[:100].sort(descending=True).values
    expected = float(top[:5].sum() / top.sum())
    assert found["memorization.top_share"].value == pytest.approx(expected, rel=1e-4)
