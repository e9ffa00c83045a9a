"""No signal, no finding: a short form of benchmarks/nulls.py."""

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import AttributeRecovery, Game, Membership
from shieldnet.attacks.shadows import Order, trained
from shieldnet.data import Examples

RECIPE = sn.Recipe(lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), epochs=20)


def records(name: str, seed: int, rows: int = 150) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 8, generator=generator)
    return Examples(name, inputs, torch.randint(0, 3, (rows,), generator=generator))


@pytest.mark.parametrize("chain", [(), (sn.Confidence(4),)], ids=str)
def test_shadows_of_a_target_that_saw_nobody_raise_no_alarm(chain) -> None:
    held, alarms, runs = 0, 0, 10
    for seed in range(runs):
        names = ("members", "nonmembers", "auxiliary")
        sets = {name: records(name, 10 * seed + place) for place, name in enumerate(names)}
        strangers = records("strangers", 10 * seed + 5)
        model = RECIPE((strangers.inputs, strangers.labels), seed)
        order = Order(RECIPE, 8, sn.Shield(model), **sets, seed=seed)
        shadows = trained(order, engine="inline")
        game = Game(sn.Shield(model, *chain), **sets, shadows=shadows)
        found = {finding.name: finding for finding in Membership()(game).findings}
        for name in ("membership.auc", "membership.worst_group.auc"):
            held += found[name].low <= 0.5 <= found[name].high
            alarms += found[name].low > 0.5
    assert held >= 2 * runs - 2
    assert alarms <= 1


class LooksAway(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1:4]


def test_a_column_that_the_model_ignores_is_not_recovered() -> None:
    held, runs = 0, 10
    for seed in range(runs):
        sets = {}
        for place, name in enumerate(("members", "nonmembers", "auxiliary")):
            one = records(name, 100 + 10 * seed + place)
            inputs = torch.cat([(one.inputs[:, :1] > 0).float(), one.inputs[:, 1:]], 1)
            sets[name] = Examples(name, inputs, one.labels)
        columns = tuple("abcdefgh")
        game = Game(sn.Shield(LooksAway()), **sets, columns=columns, sensitive=("a",))
        found = {finding.name: finding for finding in AttributeRecovery()(game).findings}
        gain = found["attribute.a.gain"]
        held += gain.low <= 0 <= gain.high
    assert held >= 9
