import math
from dataclasses import dataclass

import pytest
import torch

import shieldnet as sn
from shieldnet.training.private.clipping import Clip, FixedClip, as_clip
from shieldnet.training.private.gradient_parts import Gradient, Whole, clipped_sum

NOISE, SIZE = 1.0, 40.0
CLIPS = [FixedClip(0.3), sn.AdaptiveClip(start=0.3), sn.AdaptiveClip(0.9, pace=1.0, start=5.0)]


def gradients() -> torch.Tensor:
    """Makes gradients of every length, some of them of none."""
    generator = torch.Generator().manual_seed(0)
    each = torch.randn(40, 6, generator=generator) * torch.logspace(-8, 8, 40).unsqueeze(1)
    each[3], each[4], each[5, 0], each[6, 1] = 0, 1e30, math.nan, math.inf
    return each


def added(clip, each: torch.Tensor, norm: float, noise: float, size: float) -> torch.Tensor:
    """Returns all that some records add to what is released."""
    total = torch.zeros(6, dtype=torch.float64)
    within = clipped_sum([Gradient((Whole(each),))], norm, [total])
    counted = clip.counted(within, len(each), noise, size)
    return torch.cat([total * clip.scale(norm, noise, size), *counted])


@pytest.mark.parametrize("clip", CLIPS, ids=repr)
@pytest.mark.parametrize(("noise", "size"), [(1.0, 40.0), (0.1, 1e6), (50.0, 2.0)])
def test_a_record_adds_at_most_a_unit_whatever_it_is(clip, noise, size) -> None:
    each = gradients()
    for norm in (clip.start, 1e-30, 1e30):
        norm = clip.start if isinstance(clip, FixedClip) else norm
        everyone = added(clip, each, norm, noise, size)
        for row in range(len(each)):
            others = added(clip, torch.cat([each[:row], each[row + 1 :]]), norm, noise, size)
            assert float((everyone - others).norm()) <= clip.unit * (1 + 1e-12)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("start", [1e-2, 1.0, 1e2])
def test_the_norm_comes_to_what_a_share_of_gradients_keeps(quantile, start) -> None:
    generator = torch.Generator().manual_seed(0)
    clip, norm, kept = sn.AdaptiveClip(quantile, start=start), start, []
    for step in range(400):
        lengths = torch.randn(256, generator=generator).abs()
        (count,) = clip.counted((lengths <= norm).sum(), 256, NOISE, 256.0)
        seen = count + NOISE * torch.randn(1, generator=generator)
        norm = clip.next(norm, seen, NOISE, 256.0)
        if step >= 300:
            kept.append(float((lengths <= norm).double().mean()))
    assert sum(kept) / len(kept) == pytest.approx(quantile, abs=0.04)


def test_a_clip_that_follows_the_data_costs_no_epsilon_and_gets_the_noise_that_is_claimed(
    table,
) -> None:
    model = torch.nn.Linear(12, 500)
    settings = {"epochs": 1, "learning_rate": 1.0, "momentum": 0.0, "seed": 0}
    clips = (0.5, sn.AdaptiveClip(start=0.5))
    fixed, adaptive = (
        sn.finetune(
            model,
            table,
            sn.DPSGD(noise_multiplier=3.0, delta=1e-3, max_grad_norm=clip),
            loss=lambda outputs, labels: 0 * outputs.sum(1),
            **settings,
        )
        for clip in clips
    )
    assert adaptive.guarantee.epsilon == pytest.approx(fixed.guarantee.epsilon, rel=1e-9)
    moved = (adaptive.model.weight - model.weight).detach() * 120
    share = math.sqrt(1 - (10 * 3.0 / 120) ** 2)  # of a record's move, the gradient's
    assert float(moved.std()) == pytest.approx(3.0 * 0.5 / share, rel=0.03)


def test_it_learns_from_a_norm_that_is_far_too_short(table, mlp) -> None:
    inputs, labels = table
    start = 1e-3
    clip = sn.AdaptiveClip(start=start, pace=0.5)
    found = sn.finetune(
        mlp, table, sn.DPSGD(8.0, 1e-3, max_grad_norm=clip), epochs=60, learning_rate=0.5, seed=0
    )
    right = float((found.model(inputs).argmax(1) == labels).double().mean())
    fixed = sn.finetune(
        mlp, table, sn.DPSGD(8.0, 1e-3, max_grad_norm=start), epochs=60, learning_rate=0.5, seed=0
    ).model
    wrong_norm = float((fixed(inputs).argmax(1) == labels).double().mean())
    assert right > 0.6 > wrong_norm


def test_canaries_find_what_is_claimed_and_no_more(table, mlp) -> None:
    private = sn.DPSGD(4.0, 1e-3, canaries=600, max_grad_norm=sn.AdaptiveClip(start=0.1))
    found = sn.finetune(mlp, table, private, batch_size=60, epochs=4, seed=0).findings
    epsilon, mu, independent, gaussian = found
    assert 0.3 < epsilon.low < gaussian.low < epsilon.ceiling
    assert 0.2 < mu.low < independent.low < mu.ceiling


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quantile": 0.0}, "Expected quantile above 0 and below 1"),
        ({"quantile": math.nan}, "Expected quantile"),
        ({"pace": 0.0}, "Expected a finite pace > 0"),
        ({"start": 1e-31}, "Expected start from 1e-30 to 1e30"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        sn.AdaptiveClip(**settings)


def test_a_number_is_one_norm_for_all_steps() -> None:
    clip = as_clip(2.0)
    assert (clip.start, clip.unit, clip.scale(2.0, 1.0, 9.0)) == (2.0, 2.0, 1.0)
    assert clip.next(2.0, torch.ones(1), 1.0, 9.0) == 2.0
    assert sn.DPSGD(8.0, 1e-3).clipping == FixedClip(1.0)


@dataclass(frozen=True)
class Halving(Clip):
    """Halves the norm after every step: a toy of one's own."""

    first: float = 1.0

    @property
    def start(self) -> float:
        return self.first

    @property
    def unit(self) -> float:
        return self.first

    def next(self, norm: float, seen: torch.Tensor, noise: float, size: float) -> float:
        NORMS.append(norm)
        assert seen.shape == (0,)
        return norm / 2


NORMS: list[float] = []


def test_a_clip_of_ones_own_is_trained_with_and_proven_for(table, mlp) -> None:
    private = sn.DPSGD(8.0, 1e-3, max_grad_norm=Halving())
    found = sn.finetune(mlp, table, private, epochs=3, seed=0)
    assert found.guarantee.epsilon <= 8
    assert NORMS == [1.0, 0.5, 0.25]


@dataclass(frozen=True)
class CountingTwice(Halving):
    """Counts up in one number and down in another: a toy of one's own."""

    numbers = 2

    def counted(self, within, drawn: int, noise: float, size: float) -> list[torch.Tensor]:
        share = 0.1 * torch.full((1,), float(drawn), dtype=torch.float64)
        return [share, -share]

    def next(self, norm: float, seen: torch.Tensor, noise: float, size: float) -> float:
        SEEN.append(seen)
        return norm


SEEN: list[torch.Tensor] = []


def test_a_clip_gets_its_numbers_in_the_order_in_which_it_gave_them(table, mlp) -> None:
    private = sn.DPSGD(noise_multiplier=0.1, mode="empirical", max_grad_norm=CountingTwice())
    sn.finetune(mlp, table, private, epochs=1, seed=0)
    assert SEEN[0].shape == (2,)
    assert SEEN[0][0] > 10
    assert SEEN[0][1] < -10


def test_the_last_digit_of_a_norm_moves_the_count_by_a_digit() -> None:
    """A norm may differ in its last digits with the batch; a threshold would make that a whole."""
    each = torch.full((1000, 1), 1.0)
    totals = [torch.zeros(1, dtype=torch.float64)]
    counts = [
        float(clipped_sum([Gradient((Whole(each * scale),))], 1.0, totals))
        for scale in (1 - 1e-7, 1.0, 1 + 1e-7, 0.5, 2.0)
    ]
    assert max(counts[:3]) - min(counts[:3]) < 0.01
    assert counts[3:] == [1000, 0]
