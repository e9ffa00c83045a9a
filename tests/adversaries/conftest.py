"""What the adversaries share."""

import pytest
import torch
from torch import nn


@pytest.fixture
def make_model():
    """Makes a model from a fixed seed and leaves the global one alone."""

    def made(make) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make()

    return made


@pytest.fixture(autouse=True)
def _gradients_stay_on():
    """Puts the grad mode back: a program of torch.export that refuses a row leaves it off."""
    yield
    torch.set_grad_enabled(True)
