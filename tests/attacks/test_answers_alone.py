"""A sensitive column, from the embedding alone: all of it, or no more than how often it occurs."""

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import AttributeRecovery, Game
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NO_USE

TURN = torch.randn(6, 12, generator=torch.Generator().manual_seed(9))


class Turned(nn.Module):
    def __init__(self, first: int = 0) -> None:
        super().__init__()
        self.first = first

    def forward(self, rows: Tensor) -> Tensor:
        return (rows[:, self.first :] @ TURN[self.first :]).tanh()


def game(model: nn.Module, *chain: sn.Defense, seed: int = 0, values: int = 2) -> Game:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(600, 6, generator=generator)
    rows[:, 0] = torch.randint(0, values, (600,), generator=generator).float()
    names = ("members", "nonmembers", "auxiliary")
    sets = {name: Examples(name, part) for name, part in zip(names, rows.split(200), strict=True)}
    shield = sn.Shield(model, *chain, outputs="embeddings")
    return Game(shield, **sets, columns=tuple("abcdef"), sensitive=("a",))


def found(one: Game) -> dict[str, sn.Finding]:
    return {finding.name: finding for finding in AttributeRecovery()(one).findings}


@pytest.mark.parametrize("values", [2, 3])
def test_an_embedding_that_holds_the_column_tells_it(values) -> None:
    findings = found(game(Turned(), values=values))
    assert findings["attribute_alone.a"].low > 0.7
    assert findings["attribute_alone.a.gain"].low > 0.2
    assert "the baseline guesses without the answer" in findings["attribute_alone.a"].note


def test_signs_tell_less_of_it() -> None:
    bare, signs = (
        found(game(Turned(), *chain))["attribute_alone.a.gain"] for chain in ((), (sn.Sign(),))
    )
    assert bare.value > signs.value > 0


def test_an_embedding_of_the_other_columns_tells_nothing() -> None:
    held = 0
    for seed in range(4):
        gain = found(game(Turned(first=1), seed=seed))["attribute_alone.a.gain"]
        held += gain.low <= 0 <= gain.high
    assert held >= 3
    assert NO_USE in gain.note or abs(gain.value) < 0.15


def test_scores_of_classes_have_no_such_finding() -> None:
    one = game(Turned())
    classes = Game(
        sn.Shield(Turned(), outputs="logits"),
        **{name: getattr(one, name) for name in ("members", "nonmembers", "auxiliary")},
        columns=one.columns,
        sensitive=one.sensitive,
    )
    assert not any(name.startswith("attribute_alone") for name in found(classes))
