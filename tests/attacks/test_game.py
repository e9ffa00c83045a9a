import pytest
import torch

import shieldnet as sn
from shieldnet.core.randomness import replayed_noise
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable


def test_answers_are_kept_by_what_rows_hold_not_by_what_their_set_is_called(make_game) -> None:
    game = make_game(sn.GaussianNoise(1.0))
    rows = game.nonmembers.inputs
    first, last = game.ask(Examples("probe", rows[:50])), game.ask(Examples("probe", rows[-60:]))
    assert (len(first.distribution), len(last.distribution)) == (50, 60)
    assert game.ask(Examples("another name", rows[:50].clone())) is first
    labels = [game.model_labels(Examples("probe", part)) for part in (rows[:50], rows[-60:])]
    assert [len(part) for part in labels] == [50, 60]


def test_the_noise_of_an_answer_depends_on_the_question_alone(make_game) -> None:
    rows = make_game().nonmembers.inputs[:20]
    with replayed_noise(0):
        first = make_game(sn.GaussianNoise(1.0)).ask(Examples("one", rows))
        again = make_game(sn.GaussianNoise(1.0))
        again.ask(Examples("something else", rows[:3]))
        assert torch.equal(again.ask(Examples("two", rows)).distribution, first.distribution)


def test_a_game_without_shadows_asks_nothing_again(make_game) -> None:
    game = make_game(sn.GaussianNoise(1.0))
    assert game.without_shadows().ask(game.nonmembers) is game.ask(game.nonmembers)


def test_too_few_rows_are_no_fit_for_an_attack(make_game) -> None:
    game = make_game()
    with pytest.raises(NotApplicable, match="at least 500 rows of nonmembers, got 447"):
        game.require_rows(500, game.nonmembers)
    game.require_rows(447, game.nonmembers)
