"""Adversaries who know everything but one record, and read the digits and the tail of the noise."""

import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

import shieldnet as sn
from shieldnet.core.randomness import _lattice_table, lattice_gaussian, replayed_noise
from shieldnet.training.private.lattice import Lattice


def clipped_by_hand(model, inputs, labels, clip=1.0) -> torch.Tensor:
    """Returns the clipped sum that the adversary computes for its hypothesis."""
    weights = list(model.parameters())
    total = [torch.zeros_like(weight) for weight in weights]
    for place in range(len(inputs)):
        loss = F.cross_entropy(model(inputs[place : place + 1]), labels[place : place + 1])
        slopes = torch.autograd.grad(loss, weights)
        norm = torch.stack([slope.norm() for slope in slopes]).norm()
        for part, slope in zip(total, slopes, strict=True):
            part += min(1.0, float(clip * (1 - 2.0**-20) / norm)) * slope
    return torch.cat([part.flatten() for part in total])


def test_the_digits_of_a_float64_model_say_nothing_of_a_record(make_model) -> None:
    """The noise was float32: subtracting the right sum left a number with 24 bits."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(65, 20, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (65,), generator=generator)
    model = make_model(lambda: nn.Linear(20, 2)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()  # so that the sum can be read off the weights to its last bit
    worlds = {True: (inputs[:64], labels[:64]), False: (inputs[1:], labels[1:])}
    sums = {is_in: clipped_by_hand(model, *data) for is_in, data in worlds.items()}
    right = 0
    for trial in range(16):
        is_in = bool(trial % 2)
        result = sn.finetune(
            model,
            worlds[is_in],
            sn.DPSGD(noise_multiplier=20.0, delta=1e-5),
            epochs=1,
            learning_rate=1.0,
            momentum=0.0,
            seed=trial,
        )
        seen = -64 * torch.cat([weight.detach().flatten() for weight in result.model.parameters()])
        digits = {}
        for guess, total in sums.items():
            noise = seen - total
            rounded = noise.float().double()
            digits[guess] = float(((noise - rounded) / noise).abs().median())
        right += (digits[True] < digits[False]) == is_in
    assert 2 <= right <= 14  # 16 of 16 before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_number_of_a_noisy_sum_lies_on_one_grid(dtype, make_model, monkeypatch) -> None:
    """A float near 0 has finer digits than the noise: they left bare where a word is rare."""
    model = make_model(lambda: nn.Sequential(nn.Embedding(64, 4), nn.Flatten(), nn.Linear(8, 2)))
    words = torch.randint(0, 60, (64, 2), generator=torch.Generator().manual_seed(0))
    words[0] = 63  # nobody else has it
    seen = []
    right = Lattice.released

    def released(self, sums):
        result = right(self, sums)
        seen.append((self.step, torch.cat([part.flatten() for part in result])))
        return result

    monkeypatch.setattr(Lattice, "released", released)
    for rows in (slice(0, 64), slice(1, 64)):
        data = words[rows], words[rows, 0] % 2
        sn.finetune(
            model.to(dtype), data, sn.DPSGD(noise_multiplier=0.5, delta=1e-5), epochs=20, seed=0
        )
    assert len(seen) == 40
    assert len({step for step, _ in seen}) == 1
    for step, total in seen:
        steps = total / step
        assert torch.equal(steps, steps.round())
        assert total.dtype == torch.float64


def tails(table) -> dict[int, float]:
    """Returns the chance of an integer or any above it, for all."""
    ends = [0, *table.exact, 2**256]
    mass: dict[int, int] = {}
    for place, value in enumerate(table.values.tolist()):
        run = 64 if place < table.runs else 1
        for within in range(run):
            more = (ends[place + 1] - ends[place]) * 64 // run
            mass[value + within] = mass.get(value + within, 0) + more
    found, above = {}, 0
    for value in sorted(mass, reverse=True):
        above += mass[value]
        found[value] = above / 2**262
    return found


def test_the_tail_of_the_noise_is_the_tail_of_the_law() -> None:
    """Box and Muller's normals from 31 bits ended at 6.66 deviations: beyond, a record was bare."""
    for deviation in (4096.0, 420.3):
        found_at = tails(_lattice_table(deviation))
        for far in (3, 6.7, 9, 12, 15, 17):
            first = math.ceil(far * deviation)
            found = found_at[first]
            places = range(first, first + int(6 * deviation))
            mass = sum(math.exp(-(place**2) / (2 * deviation**2)) for place in places)
            right = mass / (math.sqrt(2 * math.pi) * deviation)
            assert found == pytest.approx(right, rel=1e-9 if far < 15 else 1e-6)


def test_the_event_beyond_the_old_tail_is_within_the_claim() -> None:
    """One record, one weight, epsilon 50: half of all sums with it lie where none lay without."""
    guarantee_noise = 1 / 8.4  # epsilon near 50 at delta 1e-6, one step
    far = 6.66
    with_record = stats.norm.sf(far - 1 / guarantee_noise)
    without = stats.norm.sf(far)
    assert with_record > 0.9
    assert with_record <= math.exp(50) * without + 1e-6
    found = tails(_lattice_table(4096.0))[math.ceil(far * 4096)]
    assert found == pytest.approx(without, rel=0.02)


def events(seen: torch.Tensor, lattice: Lattice) -> dict[str, torch.Tensor]:
    """Lists what an adversary looks at: the sign, the size, the tail, the digits."""
    steps = (seen / lattice.step).round().long()
    found = {
        f"above {cut}": seen > cut * lattice.step * lattice.deviation
        for cut in (-3, -1, 0, 1, 3, 4)
    }
    for modulus in (2, 3, 64, 128, 1024, 4096):
        for rest in (0, 1):
            found[f"{rest} modulo {modulus}"] = steps % modulus == rest
    found["on the grid"] = seen == steps * lattice.step
    found["a float32"] = seen == seen.float().double()
    return found


@pytest.mark.parametrize("noise", [0.7, 3.0])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 3e4])
def test_no_event_over_ten_thousand_draws_is_likelier_than_claimed(noise, scale) -> None:
    """Sums that differ by a whole clip norm, and by an amount that no grid holds."""
    draws = 10_000
    lattice = Lattice.of(noise, scale, numbers=1, records=1000, error=1e-9)
    cost = sn.PrivacyCost(mu=1 / noise)
    generator = torch.Generator().manual_seed(0)
    for shift in (scale, scale * math.pi / 7):
        base = float(torch.randn((), generator=generator, dtype=torch.float64)) * scale
        sides = []
        for world in (base, base + shift):
            with replayed_noise(len(sides)):
                total = torch.full((draws,), world, dtype=torch.float64)
                sides.append(lattice.released([total])[0])
        for pair in (sides, sides[::-1]):
            one, other = (events(side, lattice) for side in pair)
            for name in one:
                hits = int(one[name].sum())
                low = stats.beta.ppf(1e-5, hits, draws - hits + 1) if hits else 0.0
                misses = int(other[name].sum())
                high = 1.0
                if misses < draws:
                    high = stats.beta.ppf(1 - 1e-5, misses + 1, draws - misses)
                assert low <= cost.distinguish(min(1.0, float(high))), name


def test_a_sum_of_draws_has_no_pattern_of_its_levels() -> None:
    """The lowest draw is smoothed by the next: residues of a draw are even."""
    draws = lattice_gaussian(200_000, 2_100_000.0).long()
    for modulus in (2, 64, 1024, 4096):
        counts = torch.bincount(draws % modulus, minlength=modulus).numpy()
        assert stats.chisquare(counts).pvalue > 1e-5
