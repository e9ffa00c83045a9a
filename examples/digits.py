"""The model and data of the command line's example: scikit-learn's digits, trained on the spot."""

from functools import cache

from torch import Tensor, nn

from shieldnet import Recipe
from shieldnet.demo import EPOCHS, Split, Task, digits_network, divide, train
from shieldnet.demo import digits as task_of_digits

RECIPE = Recipe(digits_network, epochs=EPOCHS)
"""How the model was trained: for the audit's shadow models."""


@cache
def _parts() -> tuple[Task, Split]:
    task = task_of_digits()
    return task, divide(task)


def model() -> nn.Module:
    return train(*_parts())


def members() -> tuple[Tensor, Tensor]:
    return _parts()[1].members


def nonmembers() -> tuple[Tensor, Tensor]:
    return _parts()[1].nonmembers


def auxiliary() -> tuple[Tensor, Tensor]:
    return _parts()[1].auxiliary
