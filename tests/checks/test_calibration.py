import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Game
from shieldnet.checks import Calibration
from shieldnet.checks.calibration import bins_of, error_of
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable
from shieldnet.shield.module import Shield


class Says(nn.Module):
    """Releases the confidence of class 0 that its input holds."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, 1 - x], 1)


def game(confidence: Tensor, off: float, seed: int = 0, *defenses) -> Game:
    """Makes records of which class 0 is right as often as said, less ``off``."""
    drawn = torch.rand(len(confidence), generator=torch.Generator().manual_seed(1000 + seed))
    labels = (drawn >= confidence - off).long()
    examples = Examples("nonmembers", confidence.unsqueeze(1), labels)
    shield = Shield(Says(), *defenses, outputs="probabilities")
    return Game(shield, Examples("members", examples.inputs), examples)


def confidences(rows: int, seed: int = 1) -> Tensor:
    return 0.5 + torch.rand(rows, generator=torch.Generator().manual_seed(seed)) / 2


def test_what_is_as_sure_as_it_is_right_has_no_error() -> None:
    missed = 0
    for seed in range(100):
        found = {one.name: one for one in Calibration()(game(confidences(400), 0, seed)).findings}
        missed += found["calibration.ece"].low > 0
        assert found["calibration.ece"].value < 0.08
    assert missed <= 5


@pytest.mark.parametrize("off", [0.1, 0.3])
def test_answers_that_are_surer_than_right_are_found_by_how_much(off) -> None:
    held = 0
    for seed in range(40):
        outcome = Calibration()(game(confidences(1000), off, seed))
        error, over = outcome.findings
        held += error.low <= off <= error.high
        assert error.low > 0
        assert over.low > 0
    assert held >= 37
    curve = outcome.curves["calibration"]
    assert len(curve.fpr) == 10
    assert all(right < sure for sure, right in zip(curve.fpr, curve.tpr, strict=True))


def test_modest_answers_are_off_but_not_overconfident() -> None:
    error, over = Calibration()(game(0.5 + confidences(1000) / 4, -0.1)).findings
    assert error.low > 0
    assert over.high < 0


def test_equal_confidences_share_a_bin() -> None:
    place = bins_of(torch.tensor([0.9] * 150 + [0.6] * 50, dtype=torch.float64))
    assert place.unique().tolist() == [0, 1]
    assert len(place[:150].unique()) == 1
    one_bin = bins_of(torch.full((200,), 0.7, dtype=torch.float64))
    assert one_bin.unique().tolist() == [0]
    assert error_of(torch.zeros(200, dtype=torch.float64), one_bin, 0).high == 0


def test_what_has_no_confidence_no_labels_or_few_rows_does_not_apply() -> None:
    with pytest.raises(NotApplicable, match="labels have no confidence"):
        Calibration()(game(confidences(300), 0, 0, sn.Label()))
    with pytest.raises(NotApplicable, match="needs at least 200 rows of nonmembers, got 150"):
        Calibration()(game(confidences(150), 0))
    bare = game(confidences(300), 0)
    unlabeled = Game(bare.shield, bare.members, Examples("nonmembers", bare.nonmembers.inputs))
    with pytest.raises(NotApplicable, match="it needs labels"):
        Calibration()(unlabeled)
