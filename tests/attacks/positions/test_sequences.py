"""Members of a fine-tuned language model are found, and of none where it saw neither set."""

from dataclasses import replace

import pytest
import torch
from language import LENGTH, VOCABULARY, Story, fitted, story, texts

import shieldnet as sn
from shieldnet.attacks import Game, SequenceMembership
from shieldnet.attacks.positions.position_shadows import train_position_shadows
from shieldnet.core.errors import ConfigError
from shieldnet.data.examples import Examples, Group
from shieldnet.findings.finding import Finding, NotApplicable
from shieldnet.shield.settings import Extent

SHIELDS = {
    "bare": (),
    "top-1": (sn.TopK(1),),
    "top-5 rounded": (sn.TopK(5), sn.Round(1)),
    "labels": (sn.Label(),),
}


@pytest.fixture(scope="module")
def tale() -> Story:
    return story()


def stage(tale: Story, *chain, members=None, nonmembers=None, **settings) -> Game:
    shield = sn.Shield(tale.model, *chain, axis=-1)
    return Game(
        shield,
        Examples("members", tale.members if members is None else members),
        Examples("nonmembers", tale.nonmembers if nonmembers is None else nonmembers),
        extent=Extent(VOCABULARY, (LENGTH,)),
        base=shield.with_model(tale.base),
        **settings,
    )


def found(game: Game) -> dict[str, Finding]:
    return {finding.name: finding for finding in SequenceMembership()(game).findings}


@pytest.mark.parametrize("chain", SHIELDS.values(), ids=SHIELDS)
def test_members_are_found_behind_every_shield(tale: Story, chain) -> None:
    assert found(stage(tale, *chain))["membership.sequences.auc"].low > 0.6


def test_the_ratio_to_the_base_finds_more_than_the_loss(tale: Story) -> None:
    everything = found(stage(tale))
    loss, ratio = (
        everything[f"membership.sequences.{name}.auc"] for name in ("loss", "ratio to base")
    )
    assert ratio.low > loss.value


@pytest.mark.parametrize("chain", SHIELDS.values(), ids=SHIELDS)
def test_exchanged_sets_turn_every_auc_into_one_less_it(tale: Story, chain) -> None:
    right = found(stage(tale, *chain))
    wrong = found(stage(tale, *chain, members=tale.nonmembers, nonmembers=tale.members))

    each = [name for name in right if name.count(".") == 3 and name.endswith(".auc")]
    assert len(each) == 12
    for name in each:
        assert wrong[name].value == pytest.approx(1 - right[name].value)


@pytest.mark.parametrize("chain", [(), (sn.TopK(5), sn.Round(1))], ids=["bare", "top-5 rounded"])
def test_no_member_is_found_where_the_model_saw_neither_set(tale: Story, chain) -> None:
    alarms = 0
    for seed in range(6):
        game = stage(tale, *chain, members=texts(100, 50 + seed), nonmembers=texts(100, 70 + seed))
        alarms += found(game)["membership.sequences.auc"].low > 0.5
    assert alarms <= 1


def test_shadows_from_the_base_find_members_behind_each_shield(tale: Story) -> None:
    game = stage(tale)
    shields = {"bare": game.shield, "cut": sn.Shield(tale.model, *SHIELDS["top-1"], axis=-1)}

    def train(data: tuple[torch.Tensor, torch.Tensor], seed: int) -> torch.nn.Module:
        return fitted(tale.base, data[0], 12, seed)

    shadows = train_position_shadows(game, shields, train, 4, engine="inline")

    assert shadows.count == 4
    for shield in shields.values():
        everything = found(replace(game.behind(shield), position_shadows=shadows))
        lira = everything["membership.sequences.LiRA.auc"]
        assert lira.low > 0.5
        assert lira.threat.shadows == 4


def test_shadows_take_a_function_that_heeds_its_data(tale: Story) -> None:
    game = stage(tale)
    for train, words in (
        (lambda data, seed: tale.base, "ignores its data"),
        (sn.Recipe(lambda: tale.base), "one row an answer"),
    ):
        with pytest.raises(ConfigError, match=words):
            train_position_shadows(game, {"bare": game.shield}, train, 4, engine="inline")
    with pytest.raises(NotApplicable, match="pass train="):
        train_position_shadows(game, {"bare": game.shield}, None, 4)


def test_groups_are_looked_at_by_themselves(tale: Story) -> None:
    half = torch.arange(200) < 100
    everything = found(stage(tale, groups=(Group("half = 1", half, half),)))

    assert everything["membership.group.half = 1.auc"].samples == 200


def test_what_is_no_sequence_of_tokens_is_left_out(tale: Story) -> None:
    game = stage(tale)
    for other, words in (
        (replace(game, extent=None), "one row an answer"),
        (replace(game, extent=Extent(VOCABULARY, (3, 4))), "reads sequences"),
        (replace(game, members=Examples("members", tale.members[:10])), "at least 20 rows"),
    ):
        with pytest.raises(NotApplicable, match=words):
            SequenceMembership()(other)
