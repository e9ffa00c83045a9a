"""A defense of a user's own does whatever shieldnet's do: it composes, it is written and read."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.defenses import DEFENSES
from shieldnet.privacy.cost import PrivacyCost, Reach, pure_cost
from shieldnet.privacy.events import GaussianEvent, PureEvent, RandomizedResponseEvent, event_of
from shieldnet.shield.composition import events_of


@dataclass(frozen=True)
class Mine(sn.Defense):
    """Claims to be private to epsilon, whatever it does."""

    epsilon: float = 1.0
    accepts = ("probabilities",)
    gives = "probabilities"

    def __call__(self, answers: Tensor) -> Tensor:
        return answers.round(decimals=1)

    def cost(self, classes: int, upstream: Reach = Reach()) -> PrivacyCost:  # noqa: B008  # frozen
        return pure_cost(self.epsilon, answers=classes)


@dataclass(frozen=True)
class Plain(sn.Defense):
    """Claims nothing."""

    accepts = ("logits",)

    def __call__(self, answers: Tensor) -> Tensor:
        return answers


def test_it_composes_by_what_its_privacy_cost_proves() -> None:
    pytest.importorskip("dp_accounting")
    shield = sn.Shield(nn.Identity(), Mine(0.1))
    composed = sn.composed_epsilon(shield, queries=100, delta=1e-6, classes=4)
    known = sn.Shield(nn.Identity(), sn.PermuteAndFlip(0.1))
    same = sn.composed_epsilon(known, queries=100, delta=1e-6, classes=4)
    assert composed == same < 10
    nothing = sn.Shield(nn.Identity(), Plain())
    assert nothing.cost(4).bits == math.inf
    with pytest.raises(
        sn.errors.ConfigError, match=r"Nothing is proven of Identity -> Plain\(\) but"
    ):
        sn.composed_epsilon(nothing, queries=2, delta=1e-6, classes=4)


def test_it_is_written_and_read_where_it_is_named(tmp_path) -> None:
    shield = sn.Shield(nn.Identity(), Mine(0.5), outputs={"a": "logits"}, axis=1)
    path = tmp_path / "shield.toml"
    path.write_text(sn.dump_shield(shield, known=(Mine,)))
    assert sn.load_shield(nn.Identity(), path, known=[Mine]).settings == shield.settings
    with pytest.raises(sn.errors.ConfigError, match=r"Name it with known=\(Mine,\)"):
        sn.dump_shield(shield)
    with pytest.raises(sn.errors.ConfigError, match="Expected name to be one of"):
        sn.load_shield(nn.Identity(), path)


def test_what_is_no_defense_or_takes_the_name_of_one_is_not_known(tmp_path) -> None:
    impostor = type("Label", (Plain,), {})
    for kind in (3, nn.Linear, Mine(), impostor):
        with pytest.raises(sn.errors.ConfigError, match="Expected known as classes of defenses"):
            sn.load_shield(nn.Identity(), tmp_path / "none.toml", known=(kind,))
    assert DEFENSES["Label"] is sn.Label


@pytest.mark.parametrize(
    ("cost", "event"),
    [
        (PrivacyCost(), None),
        (PrivacyCost(bits=3.0), None),
        (PrivacyCost(mu=0.5), GaussianEvent(0.5)),
        (PrivacyCost(mu=0.0), PureEvent(0.0)),
        (PrivacyCost(mu=0.5, pure=1.0), PureEvent(1.0)),
    ],
)
def test_an_event_is_what_a_privacy_cost_proves(cost, event) -> None:
    assert event_of(cost) == event


def test_a_chain_did_what_its_stages_did() -> None:
    chain = sn.Shield(
        nn.Identity(), sn.ClipNorm(1.0), sn.GaussianNoise(8.0), sn.RandomizedResponse(6.0, bins=2)
    ).chain
    assert events_of(chain, 4) == (GaussianEvent(0.25), RandomizedResponseEvent(6.0, 8))
    certified = sn.harden(nn.Identity(), "certified").chain
    assert events_of(certified, 4) == (RandomizedResponseEvent(6.0, 4),)
    assert events_of(sn.harden(nn.Identity()).chain, 4) == ()


def test_what_is_asked_of_a_defense_is_declared() -> None:
    plain = Plain()
    scores = torch.zeros(2, 3)
    assert not plain.gives_integers
    assert plain.grid == 1.0
    assert plain.noise_deviation is None
    assert torch.equal(plain.with_inputs(scores, (scores,)), scores)
    assert sn.LaplaceNoise(2.0).noise_deviation == pytest.approx(2 * math.sqrt(2))


@pytest.mark.parametrize("noise", [sn.GaussianNoise(1.0), sn.LaplaceNoise(1.0)])
def test_what_reads_the_inputs_again_undoes_what_was_proven_before_it(noise) -> None:
    """Noise that is keyed on the input is no post-processing: it tells inputs apart by itself."""
    before = sn.ClipNorm(1.0), noise
    keyed = sn.KeyedNoise(50.0, b"sixteen bytes it", on="input")
    shield = sn.Shield(nn.Identity(), *before, keyed)
    assert shield.cost(3) == PrivacyCost()
    with pytest.raises(sn.errors.ConfigError, match="Nothing is proven"):
        sn.composed_epsilon(shield, queries=1, delta=1e-6, classes=3)
    after = sn.Shield(nn.Identity(), *before, keyed, sn.RandomizedResponse(2.0))
    assert after.cost(3) == sn.Shield(nn.Identity(), sn.RandomizedResponse(2.0)).cost(3)


@pytest.mark.parametrize(
    "cost",
    [
        PrivacyCost(mu=0.1, pure=50.0),
        PrivacyCost(pure=750.0),
        PrivacyCost(mu=1e-320),
        PrivacyCost(mu=1e3),
        PrivacyCost(pure=0.1),
    ],
)
def test_composition_never_lies_above_the_closed_form(cost) -> None:
    pytest.importorskip("dp_accounting")

    @dataclass(frozen=True)
    class Costing(Mine):
        def cost(self, classes: int, upstream: Reach = Reach()) -> PrivacyCost:  # noqa: B008  # frozen
            return cost

    shield = sn.Shield(nn.Identity(), Costing())
    composed = sn.composed_epsilon(shield, queries=3, delta=1e-6, classes=4)
    assert 0 <= composed <= (cost * 3).epsilon(1e-6)
    both = sn.Shield(nn.Identity(), Costing(), sn.RandomizedResponse(3.0))
    assert sn.composed_epsilon(both, queries=3, delta=1e-6, classes=4) <= composed


@dataclass(frozen=True)
class Even(sn.Defense):
    """Reads probabilities and does not say what it gives: what it read."""

    accepts = ("probabilities",)

    def __call__(self, answers: Tensor) -> Tensor:
        return answers


def test_what_it_read_is_what_it_gives_after_a_conversion() -> None:
    scores = torch.tensor([[2.0, 1.0, -1.0]])
    for chain in ((Even(),), (sn.Temperature(1.0), Even()), (Even(), Even())):
        shield = sn.Shield(nn.Identity(), *chain)
        assert torch.allclose(shield(scores).softmax(-1), scores.softmax(-1))
    twice = sn.Shield(nn.Identity(), Even(), sn.TopK(2), release="probabilities")
    once = sn.Shield(nn.Identity(), sn.TopK(2), release="probabilities")
    assert torch.allclose(twice(scores), once(scores))
