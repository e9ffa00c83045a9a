"""Models and data that several tests share; none of it is downloaded."""

import os

# Read when torch loads: without it a busy neighbor makes every test many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: their threads would only meet
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import math

import hypothesis
import pytest
import torch
from by_hand import GUARANTEE, made, subject
from torch import nn

from shieldnet.attacks import Game
from shieldnet.attacks.adversary.decoders import Network
from shieldnet.auditing import plan
from shieldnet.data.examples import Examples
from shieldnet.demo import Split, digits, divide, train
from shieldnet.reports.report import Report
from shieldnet.shield.module import Shield

hypothesis.settings.register_profile("quick", max_examples=50, deadline=None)
hypothesis.settings.register_profile("fuzz", max_examples=10_000, deadline=None)
hypothesis.settings.load_profile("quick")


def pytest_collection_finish() -> None:
    """Leaves what was imported out of every later search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def audits_start_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits a few records here, where starting processes takes longer than the audit."""
    monkeypatch.setattr(plan, "DEFAULT_ENGINE", "inline")


@pytest.fixture
def brief_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains the attackers' networks for a few steps, where the test asks not how well they learn.

    In this process alone: an audit on processes of its own trains them in full.
    """
    monkeypatch.setattr(Network, "settings", ((128.0, 10.0),))


@pytest.fixture(scope="session")
def digits_split() -> Split:
    return divide(digits())


@pytest.fixture(scope="session")
def digits_model(digits_split: Split) -> nn.Module:
    return train(digits(), digits_split)


@pytest.fixture(scope="session")
def make_game(digits_split: Split, digits_model: nn.Module):
    """Returns a game on digits behind the given defenses."""

    def make(*defenses, model=None, **settings) -> Game:
        sets = {
            name: Examples(name, *getattr(digits_split, name))
            for name in ("members", "nonmembers", "auxiliary")
        }
        return Game(Shield(model or digits_model, *defenses, **settings), **sets)

    return make


@pytest.fixture
def scores() -> torch.Tensor:
    """Returns rows of logits from flat to sharp."""
    generator = torch.Generator().manual_seed(0)
    width = torch.logspace(-2, 1.2, 200).unsqueeze(1)
    return torch.randn(200, 10, generator=generator) * width


@pytest.fixture
def linear() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(6, 4).eval()


@pytest.fixture
def report() -> Report:
    return made()


@pytest.fixture
def pictured() -> Report:
    """Returns a report with pictures, subgroups and a guarantee: all that a page can show."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, 8, 8, generator=generator)
    drawn = {f"class image {label}": torch.rand(1, 8, 8) for label in range(3)}
    subjects = [
        subject(
            name,
            leak,
            bits,
            reconstructions=images,
            features={"leak map": torch.rand(8, 8), "null map": torch.rand(8, 8), **drawn},
        )
        for name, leak, bits in (("bare", 0.6, math.inf), ("open", 0.1, 15.0), ("strict", 0.0, 3.3))
    ]
    return made(*subjects, inputs=images, groups=("sex = 0", "sex = 1"), guarantee=GUARANTEE)
