"""What counts as the same answer: number by number, whatever the largest of them is."""

import torch

from shieldnet.exporting.comparing import near
from shieldnet.outputs.layout import ZERO_LOGIT


def test_released_zeros_set_no_scale_and_must_be_the_same_ones() -> None:
    wanted = torch.tensor([[0.0, ZERO_LOGIT, -1.6]])
    assert near(wanted, wanted)
    assert near(wanted, torch.tensor([[1e-6, ZERO_LOGIT, -1.6000001]]))
    assert not near(wanted, torch.tensor([[-0.1, ZERO_LOGIT, -1.5]]))
    assert not near(wanted, torch.tensor([[0.0, -1023.0, -1.6]]))


def test_a_large_row_makes_no_other_row_near() -> None:
    wanted = torch.tensor([[3e38, -3e38], [1.0, 2.0], [1.0, 3.0]])
    assert not near(wanted, torch.tensor([[3e38, -3e38], [1.1, 2.0], [1.0, 3.0]]))
    assert not near(wanted, torch.tensor([[-1e38, 1e38], [1.0, 2.0], [1.0, 3.0]]))


def test_small_numbers_of_a_regression_are_compared_with_typical_ones() -> None:
    wanted = torch.tensor([1e-6, 1.0, -2.0])
    assert near(wanted, wanted + 1e-6)
    assert not near(wanted, wanted + 1e-3)


def test_other_shapes_types_and_labels_are_not_near() -> None:
    wanted = torch.tensor([1, 2])
    assert near(wanted, wanted.clone())
    assert not near(wanted, torch.tensor([1, 3]))
    assert not near(wanted.float(), wanted.double())
    assert not near(wanted, wanted[:1])
