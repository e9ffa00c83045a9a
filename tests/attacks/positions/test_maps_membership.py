"""Members are told by their maps where a model remembers them, and by nothing else."""

from dataclasses import replace

import pytest
import torch
from maps import Nudges, Remembers, Shows, game_of, nudged, sets, squares

import shieldnet as sn
from shieldnet.attacks import Game, MapMembership
from shieldnet.attacks.positions.maps import boundaries, map_scores, scored_maps
from shieldnet.attacks.positions.position_shadows import train_position_shadows
from shieldnet.attacks.positions.readings import Readings, readings_of
from shieldnet.core.statistics import auc
from shieldnet.findings.finding import Finding, NotApplicable
from shieldnet.shield.settings import Extent


def found(game: Game) -> dict[str, Finding]:
    return {finding.name: finding for finding in MapMembership()(game).findings}


def remembering(*chain: sn.Defense, seed: int = 0) -> Game:
    return game_of(Remembers(*sets(seed)["members"]), *chain, seed=seed)


@pytest.mark.parametrize(
    "chain", [(), (sn.Round(1),), (sn.Confidence(2),), (sn.Coarsen(2),), (sn.Label(),)], ids=str
)
def test_a_model_that_remembers_is_found_behind_shields(chain) -> None:
    assert found(remembering(*chain))["membership.maps.auc"].low > 0.8


@pytest.mark.parametrize("labeled", [True, False])
def test_shadows_find_what_no_single_answer_shows(labeled) -> None:
    chain = sn.Round(2)
    plain = game_of(Nudges(*sets()["members"]), chain)
    assert plain.auxiliary is not None
    if not labeled:
        plain = replace(plain, auxiliary=replace(plain.auxiliary, labels=None))
    shadows = train_position_shadows(plain, {"s": plain.shield}, nudged, 8, engine="inline")
    assert all(
        part.shape == (8, 60, 8) for part in shadows.sums[plain.shield.settings.digest()].values()
    )
    scored = scored_maps(replace(plain, position_shadows=shadows))
    areas = {name: auc(one.members, one.nonmembers) for name, one in scored.items()}
    assert areas["LiRA"].low > 0.9
    assert areas["LiRA on loss at boundaries"].low > 0.9
    assert areas["RMIA"].low > 0.8
    assert areas["loss"].value < 0.8


def test_shadows_of_a_target_that_saw_neither_set_raise_no_alarm() -> None:
    alarms = 0
    for seed in range(3):
        game = game_of(Nudges(*squares(60, 100 + seed)), seed=seed)
        shadows = train_position_shadows(game, {"s": game.shield}, nudged, 6, engine="inline")
        game = replace(game, position_shadows=shadows)
        alarms += found(game)["membership.maps.auc"].low > 0.5
    assert alarms <= 1


def test_exchanged_sets_give_one_less_the_auc() -> None:
    game = remembering(sn.Round(1))
    exchanged = replace(
        game,
        members=replace(game.nonmembers, name="members"),
        nonmembers=replace(game.members, name="nonmembers"),
    )
    one, other = scored_maps(game), scored_maps(exchanged)
    for name, scored in one.items():
        assert torch.equal(scored.members, other[name].nonmembers), name
        assert torch.equal(scored.nonmembers, other[name].members), name


def test_a_model_that_saw_neither_set_raises_no_alarm() -> None:
    findings = [
        found(game_of(Shows(), *chain, seed=seed))["membership.maps.auc"]
        for seed in range(6)
        for chain in ((), (sn.Label(),))
    ]
    assert sum(finding.low > 0.5 for finding in findings) <= 1


def test_unlabeled_images_of_the_adversary_are_enough() -> None:
    game = remembering()
    assert game.auxiliary is not None
    unlabeled = replace(game, auxiliary=replace(game.auxiliary, labels=None))
    assert found(unlabeled)["membership.maps.auc"].low > 0.9


def test_each_score_is_what_it_says() -> None:
    log_p = torch.tensor([[[0.9, 0.5], [0.1, 0.7]]]).double().log()
    labels = torch.tensor([[[0, 0], [1, 0]]])
    counted = torch.tensor([[[True, True], [True, False]]])
    readings = Readings(
        log_p,
        mean=torch.full((1, 2, 2), -0.5).double(),
        deviation=torch.full((1, 2, 2), 2.0).double(),
        winner=torch.tensor([[[0, 0], [0, 0]]]),
        labels=labels,
        counted=counted,
        least=0.1,
    )
    scores = map_scores(readings, floor=0.05)
    all_pixels = log_p[0][counted[0]]
    assert scores["loss"].item() == pytest.approx(all_pixels.mean().item())
    assert scores["entropy"].item() == pytest.approx(-0.5)
    assert scores["standardized loss"].item() == pytest.approx(((all_pixels + 0.5) / 2).mean())
    assert scores["worst pixels"].item() == pytest.approx(all_pixels.min().item())
    assert scores["right pixels"].item() == pytest.approx(2 / 3)
    at_edge = log_p[0, :, 0]
    assert scores["loss at boundaries"].item() == pytest.approx(at_edge.mean().item())
    assert scores["right pixels at boundaries"].item() == pytest.approx(0.5)


def test_boundaries_lie_on_both_sides_and_are_everything_of_one_class() -> None:
    labels = torch.tensor([[[0, 0, 1, 1]], [[2, 2, 2, 2]]])
    expected = [[[False, True, True, False]], [[True] * 4]]
    assert boundaries(labels, torch.ones_like(labels, dtype=torch.bool)).tolist() == expected


def test_labels_alone_have_no_losses_that_are_infinite() -> None:
    game = remembering(sn.Label())
    assert all(
        scores.isfinite().all()
        for scores in map_scores(readings_of(game, game.members), 0.5).values()
    )


def test_sequences_and_answers_of_one_row_are_refused() -> None:
    game = game_of(Shows())
    with pytest.raises(NotApplicable, match="one row an answer"):
        MapMembership()(replace(game, extent=None))
    with pytest.raises(NotApplicable, match="it reads maps"):
        MapMembership()(replace(game, extent=Extent(2, (8,))))


@pytest.mark.parametrize("fprs", [(0.0,), (1.0,), (0.1, 0.1)])
def test_rates_that_are_none_are_refused(fprs) -> None:
    with pytest.raises(sn.errors.ConfigError, match=r"fprs"):
        MapMembership(fprs=fprs)
