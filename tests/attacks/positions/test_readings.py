"""What is read of answers at positions agrees with torch, whatever axis the classes are on."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import shieldnet as sn
from shieldnet.attacks import Game
from shieldnet.attacks.positions import readings
from shieldnet.attacks.positions.readings import mean_over, readings_of
from shieldnet.data.examples import Examples
from shieldnet.shield.settings import Extent


@pytest.fixture
def game() -> Game:
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 3, padding=1).eval()
    sets = [
        Examples(name, torch.randn(5, 2, 4, 4), torch.randint(0, 3, (5, 4, 4)))
        for name in ("members", "nonmembers")
    ]
    return Game(sn.Shield(model, axis=1), *sets, extent=Extent(3, (4, 4)))


def test_the_mean_is_the_loss_of_torch(game: Game) -> None:
    read = readings_of(game, game.members)

    labels = game.members.labels
    assert labels is not None
    loss = cross_entropy(game.shield(game.members.inputs), labels, reduction="none")
    assert torch.allclose(-mean_over(read.log_p, read.counted).float(), loss.mean((1, 2)))
    assert (
        read.right.float().mean()
        == (game.shield.model(game.members.inputs).argmax(1) == labels).float().mean()
    )


def test_batches_change_nothing(game: Game, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = readings.read(game, game.members)
    monkeypatch.setattr(readings, "_NUMBERS_AT_ONCE", 1)
    one_by_one = readings.read(game, game.members)

    assert torch.allclose(whole.log_p, one_by_one.log_p)
    assert torch.allclose(whole.deviation, one_by_one.deviation)


def test_labels_alone_say_yes_or_nothing(game: Game) -> None:
    shield = sn.Shield(game.shield.model, axis=1, release="labels")

    read = readings_of(game.behind(shield), game.members)

    assert read.log_p[read.right].eq(0).all()
    assert read.log_p[~read.right].eq(-torch.inf).all()
    assert read.least == 1.0
    assert read.floored(0.5).min() == torch.tensor(0.5, dtype=torch.float64).log()
