import math
from itertools import pairwise

import pytest
import torch

import shieldnet as sn
from shieldnet.core.randomness import lattice_gaussian, lattice_levels, replayed_noise
from shieldnet.training.private.lattice import Lattice

SETTINGS = [
    (noise, clip, numbers, records)
    for noise in (0.05, 1.0, 37.0)
    for clip in (1e-20, 1.0, 3e5)
    for numbers in (1, 1000, 10**7)
    for records in (1, 10**5)
]


@pytest.mark.parametrize(("noise", "clip", "numbers", "records"), SETTINGS)
def test_the_noise_is_what_is_claimed_and_the_grid_is_fine(noise, clip, numbers, records) -> None:
    error = 1e-4
    lattice = Lattice.of(noise, clip, numbers=numbers, records=records, error=error)
    assert math.frexp(lattice.step)[0] == 0.5
    assert lattice.sensitivity >= clip * (1 + 2 * error) + lattice.step * math.sqrt(numbers)
    assert lattice.sensitivity <= 1.017 * clip
    gaussian = math.sqrt(lattice.deviation**2 - 9) * lattice.step
    assert gaussian == pytest.approx(noise * lattice.sensitivity, rel=1e-12)
    assert lattice.variation < 1e-60
    lattice_levels(lattice.deviation)  # it can be drawn


def test_what_float64_cannot_hold_is_refused() -> None:
    with pytest.raises(sn.errors.ConfigError, match="does not fit into float64"):
        Lattice.of(1e-9, 1.0, numbers=10**8, records=10**9, error=0.0)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_what_is_released_lies_on_the_grid_whatever_the_sum(scale) -> None:
    lattice = Lattice.of(2.0, scale, numbers=12, records=5, error=0.0)
    sums = [scale * torch.randn(3, 2, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)]
    for part, total in zip(lattice.released(sums), sums, strict=True):
        assert part.shape == total.shape
        steps = part / lattice.step
        assert torch.equal(steps, steps.round())


def test_two_sums_a_record_apart_are_never_further_apart_on_the_grid(monkeypatch) -> None:
    monkeypatch.setattr(
        "shieldnet.training.private.lattice.lattice_gaussian",
        lambda count, deviation: torch.zeros(count, dtype=torch.float64),
    )
    lattice = Lattice.of(1.0, 1.0, numbers=50, records=10, error=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        one = torch.randn(50, generator=generator, dtype=torch.float64)
        step = torch.randn(50, generator=generator, dtype=torch.float64)
        other = one + step / step.norm()
        cut = [lattice.released([part.clone()])[0] for part in (one, other)]
        assert float((cut[0] - cut[1]).norm()) <= lattice.sensitivity


@pytest.mark.parametrize("deviation", [1700.0, 6400.0, 2e6, 3e9])
def test_draws_have_the_moments_of_a_gaussian(deviation) -> None:
    draws = lattice_gaussian(200_000, deviation)
    assert torch.equal(draws, draws.round())
    scaled = draws / deviation
    assert abs(float(scaled.mean())) < 5 / math.sqrt(200_000)
    assert float(scaled.var()) == pytest.approx(1, abs=0.016)
    assert float(scaled.pow(4).mean()) == pytest.approx(3, abs=0.12)
    tail = float((scaled.abs() > 3).double().mean())
    assert tail == pytest.approx(0.0027, abs=0.0006)


def test_draws_have_the_chances_of_the_discrete_gaussian() -> None:
    """A table's own chances, and those of a sum of two draws, against the formula."""
    from scipy import stats

    for deviation, width in ((1700.0, 40), (1_800_000.0, 40_000)):
        draws = (lattice_gaussian(400_000, deviation) / width).round().long()
        last = math.ceil(4 * deviation / width)
        inside = draws[(draws.abs() <= last)] + last
        seen = torch.bincount(inside, minlength=2 * last + 1).double().numpy()
        places = torch.arange(-8 * int(deviation), 8 * int(deviation) + 1).double()
        mass = torch.exp(-places.square() / (2 * deviation**2))
        binned = torch.zeros(2 * last + 1, dtype=torch.float64)
        at = (places / width).round().long() + last
        kept = (at >= 0) & (at <= 2 * last)
        binned.index_add_(0, at[kept], mass[kept])
        expected = (binned / binned.sum() * len(inside)).numpy()
        assert stats.chisquare(seen, expected).pvalue > 1e-4


def chances(table) -> dict[int, int]:
    """Returns 2^262 times the chance of every integer, exactly."""
    ends = [0, *table.exact, 2**256]
    found: dict[int, int] = {}
    pairs = zip(pairwise(ends), table.values.tolist(), strict=True)
    for place, ((low, high), value) in enumerate(pairs):
        run = 64 if place < table.runs else 1
        for within in range(run):
            found[value + within] = found.get(value + within, 0) + (high - low) * 64 // run
    return found


@pytest.mark.parametrize("deviation", [4096.0, 517.3])
def test_a_table_holds_the_law_down_to_its_last_bits(deviation) -> None:
    import mpmath

    from shieldnet.core.randomness import _lattice_table

    found = chances(_lattice_table(deviation))
    with mpmath.workdps(100):
        width = 2 * mpmath.mpf(deviation) ** 2
        half = [mpmath.exp(-(mpmath.mpf(k) ** 2) / width) for k in range(int(19.5 * deviation))]
        total = 2 * sum(half) - 1
        off = sum(
            abs(mpmath.mpf(found.get(sign * k, 0)) / 2**262 - mass / total)
            for k, mass in enumerate(half)
            for sign in ((1, -1) if k else (1,))
        )
    assert off < 2.0**-238


def test_tables_decide_every_draw_by_256_bits(monkeypatch) -> None:
    """Words on, just below and just above a threshold, where 16 or 32 bits leave it open."""
    from bisect import bisect_right
    from contextvars import ContextVar

    from shieldnet.core.randomness import _from_table, _lattice_table

    table = _lattice_table(4096.0)
    assert list(table.exact) == sorted(table.exact)
    last = len(table.exact) - 1
    for place in (0, 1, 900, 1216, table.runs - 1, table.runs, last // 2, last - 1, last):
        for offset in (-1, 0, 1):
            word = table.exact[place] + offset
            if not 0 <= word < 2**256:
                continue
            outcome = bisect_right(table.exact, word)
            right = int(table.values[outcome]) + (5 if outcome < table.runs else 0)
            chunks = iter(
                [
                    ((word >> 240) & 0xFFFF).to_bytes(2, "little"),
                    bytes([0xC5]),  # the place within a run is its low six bits
                    ((word >> 224) & 0xFFFF).to_bytes(2, "little"),
                    (word & (2**224 - 1)).to_bytes(28, "little"),
                ]
            )
            source = ContextVar("source", default=lambda count, chunks=chunks: next(chunks))
            monkeypatch.setattr("shieldnet.core.randomness._source", source)
            (drawn,) = _from_table(1, table)
            assert int(drawn) == right


def test_deviations_between_those_of_the_tables_are_refused() -> None:
    for deviation in (1.0, 1600.0, 7000.0, 1_600_000.0, 1e8):
        with pytest.raises(sn.errors.ConfigError, match="Expected a deviation between"):
            lattice_levels(deviation)


def test_a_seed_gives_the_same_draws() -> None:
    def drawn(seed):
        with replayed_noise(seed):
            return lattice_gaussian(100_000, 5000.0)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
