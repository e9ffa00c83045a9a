"""A loaded shield answers as it was certified, and knows what an answer costs before the first."""

import pytest
import torch
from torch import nn

import shieldnet as sn


class Network(nn.Module):
    """Answers with two heads, or with scores at as many positions as its input has."""

    def __init__(self, heads: bool = False) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x):
        return {"topic": x, "intent": x[:, :3]} if self.heads else x


def heads() -> Network:
    return Network(heads=True)


def loaded(folder, shield: sn.Shield, model=Network, **more) -> sn.Shield:
    return sn.load_hardened(sn.save_hardened(shield, folder / "h", **more), model)


@pytest.mark.parametrize(
    ("settings", "example"),
    [({}, torch.rand(4, 5)), ({"axis": 1}, torch.rand(4, 5, 2, 3))],
)
def test_a_loaded_shield_is_charged_for_before_its_first_answer(
    tmp_path, settings, example
) -> None:
    shield = sn.harden(Network().eval(), **settings)
    again = loaded(tmp_path, shield, example=example)
    shield(example)
    assert again.settings == shield.settings
    assert again.extent == shield.extent
    with sn.Guard(again, ledger=f"sqlite:///{tmp_path / 'l.db'}", queries_per_client=9) as guard:
        assert guard.charge("alice", 2).units == guard.units.times(2)
        assert guard.cost == shield.cost()
        assert torch.equal(guard(example, client="alice"), shield(example))
        with pytest.raises(sn.errors.AnswerError):
            guard(torch.rand(2, 7, *example.shape[2:]), client="alice")
        assert guard.left("alice")[0].queries == 1


def test_a_loaded_shield_of_several_heads_knows_what_each_costs(tmp_path) -> None:
    kinds = {"topic": "logits", "intent": "logits"}
    settings = {"outputs": kinds, "also": {"intent": (sn.Label(),)}}
    shield, x = sn.Shield(heads().eval(), sn.Label(), **settings), torch.rand(4, 5)
    again = loaded(tmp_path, shield, heads, example=x)
    shield(x)
    assert again.extent == shield.extent
    assert again.cost() == shield.cost()
    assert torch.equal(again(x)["intent"], shield(x)["intent"])
    assert again.extent == shield.extent


def test_a_loaded_shield_alone_still_answers_larger_inputs(tmp_path) -> None:
    shield = sn.harden(Network().eval(), axis=1)
    again = loaded(tmp_path, shield, example=torch.rand(4, 5, 2, 3))
    before = again.cost()
    again(torch.rand(4, 5, 4, 3))
    assert again.extent == sn.Extent(5, (4, 3))
    assert again.cost().bits == pytest.approx(2 * before.bits)


def test_without_a_certificate_the_first_answer_tells(tmp_path) -> None:
    again = loaded(tmp_path, sn.harden(Network().eval()))
    assert again.extent is None
    again(torch.rand(4, 5))
    assert again.extent == sn.Extent(5)
