"""Small data and models that the tests of training share."""

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session")
def table() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns 120 rows of 12 numbers in three classes that a line can tell."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(120, 12, generator=generator)
    return inputs, inputs[:, :3].argmax(1)


@pytest.fixture(scope="session")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns 48 images of three channels in three classes."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(48, 3, 6, 6, generator=generator)
    return inputs, inputs.mean((2, 3)).argmax(1)


def seeded(make) -> nn.Module:
    """Makes a model from a fixed seed and leaves the global one alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@pytest.fixture
def mlp() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3)))


@pytest.fixture
def make_model():
    return seeded
