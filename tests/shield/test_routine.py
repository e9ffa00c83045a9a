"""Answers of a form that was seen before are checked for their values alone, and still refused."""

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.core.errors import AnswerError


class Moods(nn.Module):
    """Answers in whatever form the mood says."""

    mood = "plain"

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Identity())

    def forward(self, rows: torch.Tensor) -> object:
        rows = self.inner(rows)
        moods = {
            "plain": lambda: rows,
            "wide": lambda: torch.cat([rows, rows], 1),
            "double": rows.double,
            "whole": rows.long,
            "dict": lambda: {"logits": rows},
            "nan": lambda: rows * torch.nan,
            "flat": lambda: rows[:, 0],
            "none": lambda: None,
        }
        return moods[self.mood]()


ROWS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 3


def asked_often() -> tuple[Moods, sn.Shield]:
    model = Moods().eval()
    shield = sn.harden(model, "open")
    for count in (6, 3, 6, 1):
        shield(ROWS[:count])
    return model, shield


@pytest.mark.parametrize("mood", ["wide", "double", "whole", "dict", "nan", "flat", "none"])
def test_another_form_is_looked_at_in_full_after_many_of_one(mood) -> None:
    model, shield = asked_often()
    model.mood = mood
    with pytest.raises(AnswerError):
        shield(ROWS)
    model.mood = "plain"
    assert torch.equal(shield(ROWS), sn.harden(Moods().eval(), "open")(ROWS))


def test_questions_of_another_form_have_a_form_of_answers_of_their_own() -> None:
    _, shield = asked_often()
    assert shield(ROWS.double()).dtype == torch.float64
    assert shield(ROWS).dtype == torch.float32
    assert torch.equal(shield(rows=ROWS), shield(ROWS))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.inner.append(nn.BatchNorm1d(5, track_running_stats=False)),
        lambda model: setattr(model, "inner", nn.Dropout().train()),
        lambda model: model.inner.append(nn.Dropout()) and model.train(),
    ],
    ids=["a layer is added", "a layer is replaced", "the mode is changed"],
)
def test_layers_that_change_are_looked_at_again(change) -> None:
    model, shield = asked_often()
    change(model)
    with pytest.raises(AnswerError, match="would make answers random or let rows"):
        shield(ROWS)


def test_a_normalization_that_loses_its_statistics_is_refused() -> None:
    norm = nn.BatchNorm1d(5).eval()
    shield = sn.harden(nn.Sequential(norm).eval(), "open")
    for _ in range(3):
        shield(ROWS)
    norm.running_mean = None
    with pytest.raises(AnswerError, match="Track its statistics"):
        shield(ROWS)


@pytest.mark.parametrize("classes", [3, 100])
def test_a_negative_zero_stays_what_it_is_in_batches_of_every_size(classes) -> None:
    row = torch.zeros(1, classes)
    row[0, 0], row[0, 1::2] = 1.0, -0.0
    shield = sn.Shield(nn.Identity().eval(), sn.TopK(2), outputs="probabilities")
    many = shield(row.repeat(40, 1)).view(torch.int32)
    assert torch.equal(many, shield(row).view(torch.int32).repeat(40, 1))


def test_rows_are_answered_alike_in_batches_of_every_size_and_form() -> None:
    """Few rows go by Python's own numbers, many by numpy, drawn graphs by torch."""
    rows = torch.randn(300, 40, generator=torch.Generator().manual_seed(1)) * 2
    rows[::7] = rows[::7].round()
    for chain in [(sn.TopK(3), sn.Round(1)), (sn.Round(2),), (sn.TopK(20), sn.Round(3))]:
        shield = sn.Shield(nn.Identity().eval(), *chain)
        whole = shield(rows)
        for start, stop in ((0, 1), (1, 3), (3, 20), (20, 120)):
            assert torch.equal(shield(rows[start:stop]), whole[start:stop])
        image = sn.Shield(nn.Identity().eval(), *chain, axis=1)
        pixels = rows.reshape(30, 10, 40).movedim(-1, 1)
        assert torch.equal(image(pixels).movedim(1, -1).reshape(300, 40), whole)
