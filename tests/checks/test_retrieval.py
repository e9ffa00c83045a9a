"""What a search still finds behind a shield: all of it, none beyond chance, ties by chance."""

import pytest
import torch
from scipy.stats import spearmanr
from torch.nn.functional import cosine_similarity

import shieldnet as sn
from shieldnet.attacks import Game
from shieldnet.checks.retrieval import NEIGHBORS, retrieval
from shieldnet.checks.utility import utility
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable

ROWS = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
CHANCE = NEIGHBORS / 199


def found(released: torch.Tensor) -> dict[str, sn.Finding]:
    return {one.name.partition(".")[2]: one for one in retrieval(ROWS, released)}


def test_the_same_directions_find_the_same_neighbors() -> None:
    lengths = torch.rand(200, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    assert all(one.value == pytest.approx(1) for one in found(ROWS * lengths).values())


def test_other_vectors_find_neighbors_by_chance() -> None:
    other = found(torch.randn(200, 16, generator=torch.Generator().manual_seed(2)))
    assert other["recall"].low <= CHANCE <= other["recall"].high
    assert other["recall"].baseline == CHANCE
    assert abs(other["rank_correlation"].value) < 0.05


def test_equal_answers_count_as_a_draw() -> None:
    assert found(torch.ones(200, 16))["recall"].value == pytest.approx(CHANCE)
    assert found(torch.ones(200, 16))["rank_correlation"].value == 0


def test_ranks_are_those_of_scipy_with_ties() -> None:
    signs = ROWS.sign()
    rows = []
    for place in range(200):
        others = torch.arange(200) != place
        near, far = (
            cosine_similarity(every[place : place + 1].double(), every[others].double())
            for every in (ROWS, signs)
        )
        rows.append(spearmanr(near, far.round(decimals=9)).statistic)
    mean = sum(rows) / len(rows)
    assert found(signs)["rank_correlation"].value == pytest.approx(mean, abs=1e-3)


def test_coarser_answers_find_fewer_neighbors() -> None:
    recall = [found((ROWS / step).round() * step)["recall"].value for step in (0.05, 0.5, 2.0)]
    assert recall[0] > 0.95 > recall[1] > recall[2] > CHANCE


def test_embeddings_alone_are_searched_and_few_are_not_tested() -> None:
    sets = {name: Examples(name, ROWS) for name in ("members", "nonmembers")}
    names = {}
    for kind in ("embeddings", "values"):
        game = Game(sn.Shield(torch.nn.Identity(), outputs=kind), **sets)
        names[kind] = {finding.name for finding in utility(game, [])}
    assert names["embeddings"] - names["values"] == {
        "cosine",
        "retrieval.recall",
        "retrieval.rank_correlation",
    }
    few = {name: Examples(name, ROWS[:15]) for name in sets}
    untested: list[str] = []
    list(utility(Game(sn.Shield(torch.nn.Identity(), outputs="embeddings"), **few), untested))
    assert untested == ["retrieval: needs at least 20 nonmembers, got 15"]
    with pytest.raises(NotApplicable):
        list(retrieval(ROWS[:15], ROWS[:15]))
