"""The adversary asks two worlds 10,000 times each and learns the event that tells them best."""

import pytest
import torch
from scipy.stats import beta
from torch import Tensor, nn

import shieldnet as sn

DRAWS = 10_000
ERROR = 1e-9  # of one interval: false alarms are not among what these tests see

SCORES = (sn.ClipNorm(1.0), sn.GaussianNoise(2.0))
VALUES = sn.ClipRange(-1.0, 1.0)
WORLDS = {
    "Gaussian, scores": (SCORES, {}, [[5.0, 0.0, -5.0]], [[-5.0, 0.1, 5.0]]),
    "Gaussian, fine digits": (
        (VALUES, sn.GaussianNoise(1.0, step=2.0**-9)),
        {"outputs": "values"},
        [[1.0]],
        [[-0.123456789]],
    ),
    "Gaussian, integers": (
        (VALUES, sn.GaussianNoise(1.0, integers=True)),
        {"outputs": "values"},
        [[1.0]],
        [[-1.0]],
    ),
    "Laplace": ((VALUES, sn.LaplaceNoise(2.0)), {"outputs": "values"}, [[0.7]], [[-0.77777]]),
    "randomized response": ((sn.RandomizedResponse(1.0),), {}, [[9.0, 0, 0]], [[0, 0, 9.0]]),
    "randomized response with bins": (
        (sn.RandomizedResponse(2.0, bins=3),),
        {},
        [[9.0, 0, 0]],
        [[0.2, 0, 0.1]],
    ),
    "permute and flip": ((sn.PermuteAndFlip(1.0),), {}, [[9.0, 0, 0]], [[0, 0, 9.0]]),
    "of what follows the noise": (
        (*SCORES, sn.TopK(1), sn.Round(1)),
        {},
        [[5.0, 0.0, -5.0]],
        [[-5.0, 0.1, 5.0]],
    ),
}


def _readings(answers: Tensor) -> dict[str, Tensor]:
    """Lists what the adversary looks at: all of it, its order, its size and its last digits."""
    flat = answers.flatten(1)
    symbols = flat.unique(dim=0, return_inverse=True)[1]
    bits = flat.contiguous().view(torch.int64 if flat.element_size() == 8 else torch.int32)
    first = flat[:, 0].double().contiguous()
    steps = (first * 2.0**40).long()
    return {
        "the answer": symbols,
        "the winner": flat.argmax(-1),
        "its size": torch.bucketize(first, first.quantile(torch.linspace(0, 1, 40).double())),
        "its last bits": (bits[:, 0] & 0xFF).long(),
        "its lowest digit": (steps & -steps).double().clamp_min(1).log2().long(),
    }


def _rates(reading: Tensor, times: int) -> tuple[float, float]:
    """Learns from one half which symbols the second world gives so many times as often.

    Returns what the other half shows: bounds of the false- and true-positive rate.
    """
    world = torch.arange(2 * DRAWS) >= DRAWS
    learns = torch.arange(2 * DRAWS) % 2 == 0
    size = int(reading.max()) + 1
    counts = [reading[learns & (world == side)].bincount(minlength=size) for side in (False, True)]
    event = counts[1] > times * counts[0]
    hits = [int(event[reading[~learns & (world == side)]].sum()) for side in (False, True)]
    half = DRAWS // 2
    fpr = float(beta.ppf(1 - ERROR, hits[0] + 1, half - hits[0])) if hits[0] < half else 1.0
    tpr = float(beta.ppf(ERROR, hits[1], half - hits[1] + 1)) if hits[1] else 0.0
    return fpr, tpr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", WORLDS)
def test_no_event_tells_two_worlds_better_than_the_privacy_cost_allows(name, dtype) -> None:
    chain, settings, first, second = WORLDS[name]
    shield = sn.Shield(nn.Identity(), *chain, **settings)
    answers = torch.cat(
        [shield(torch.tensor(row, dtype=dtype).repeat(DRAWS, 1)) for row in (first, second)]
    )
    cost = shield.cost()
    for event, reading in _readings(answers).items():
        for times in (1, 2, 8):
            fpr, tpr = _rates(reading, times)
            assert tpr <= cost.distinguish(fpr), f"{event}: {tpr} at {fpr}"


def test_the_adversary_finds_what_float_noise_gives_away() -> None:
    """The same adversary, on noise that is added as floats: the lowest digit tells the worlds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        noise = torch.randn(2 * DRAWS, 1)
    answers = torch.cat([noise[:DRAWS] + 0.25, noise[DRAWS:]])
    fpr, tpr = _rates(_readings(answers)["its lowest digit"], times=8)
    assert tpr > sn.PrivacyCost(mu=0.25).distinguish(fpr)


@pytest.mark.parametrize("name", WORLDS)
def test_two_answers_of_one_batch_have_nothing_in_common(name) -> None:
    """Draws of one batch are as independent as draws of two: neighbors agree as strangers do."""
    chain, settings, first, _ = WORLDS[name]
    answers = sn.Shield(nn.Identity(), *chain, **settings)(torch.tensor(first).repeat(DRAWS, 1))
    symbols = answers.flatten(1).unique(dim=0, return_inverse=True)[1]
    chance = float((symbols.bincount().double() / DRAWS).square().sum())
    deviation = (chance * (1 - chance) / DRAWS) ** 0.5 + 1e-4
    for distance in (1, 2, 7, DRAWS // 2):
        agreeing = float((symbols == symbols.roll(distance)).double().mean())
        assert abs(agreeing - chance) < 8 * deviation
