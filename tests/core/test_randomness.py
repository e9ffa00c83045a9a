import math
import os
import threading
from contextvars import ContextVar

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, norm

from shieldnet.core.exact_tables import gaussian_table
from shieldnet.core.randomness import (
    by_table,
    random_words,
    replayed_noise,
    rounded_gaussian,
)
from shieldnet.runtime import looked_up


@pytest.mark.parametrize("deviation", [1.0, 2.7, 8.0])
def test_rounded_gaussians_have_the_probabilities_of_a_rounded_normal(deviation: float) -> None:
    count = 400_000
    with replayed_noise(1):
        drawn = rounded_gaussian((count,), deviation).numpy()
    last = int(4 * deviation)
    edges = np.concatenate([[-np.inf], np.arange(-last, last + 1) + 0.5, [np.inf]])
    observed = np.histogram(drawn, edges)[0]
    expected = count * np.diff(norm.cdf(edges / deviation))
    assert chisquare(observed, expected).pvalue > 1e-3


def test_the_table_holds_the_cumulative_probabilities_to_128_bits() -> None:
    table = gaussian_table(8.0)
    exact, first = table.exact, table.first
    import mpmath

    with mpmath.workdps(60):
        for index in (0, 50, len(exact) // 2, len(exact) - 1):
            wanted = mpmath.ncdf((first + index + mpmath.mpf("0.5")) / 8) * 2**128
            assert abs(exact[index] - wanted) <= 1
    assert sorted(exact) == list(exact)


def test_equal_leading_words_are_decided_by_more_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw that equals a threshold's leading word is compared in full, on either side."""
    table = gaussian_table(4.0)
    middle = len(table.exact) // 2
    remainder = table.exact[middle] % 2**96
    for low, expected in ((remainder - 1, middle), (remainder, middle + 1)):
        leading = table.leading[middle : middle + 1].tobytes()
        parts = [leading, low.to_bytes(12, "little")]
        source = ContextVar("source", default=lambda count, parts=parts: parts.pop(0))
        monkeypatch.setattr("shieldnet.core.randomness._source", source)
        assert int(rounded_gaussian((1,), 4.0)) == table.first + expected


@pytest.mark.parametrize("deviation", [0.3, 1.0, 4.0, 32.0, 1000.0])
def test_the_quick_lookup_finds_what_a_search_finds(deviation: float) -> None:
    table = gaussian_table(deviation)
    random = random_words(25_000).numpy().view(np.uint32)
    near = (table.leading.astype(np.int64)[:, None] + np.arange(-2, 3)).ravel().clip(0, 2**32 - 1)
    ends = np.array([0, 1, 2**16 - 1, 2**16, 2**31, 2**32 - 2**16, 2**32 - 1])
    words = np.concatenate([random, near, ends]).astype(np.uint32)
    wanted = np.searchsorted(table.leading, words, "right")
    assert (looked_up(words, table) == wanted).all()
    signed = torch.from_numpy((words ^ np.uint32(2**31)).view(np.int32))
    assert (by_table(signed, table).numpy() == wanted + table.first).all()


@pytest.mark.parametrize("count", [5, 32, 33, 500])
def test_few_and_many_draws_come_from_the_same_words(count: int) -> None:
    """However many are drawn at once, a word of 32 bits and a table say which integer it is."""
    table = gaussian_table(8.0)
    with replayed_noise(3):
        words = np.frombuffer(random_words(count)[: (count + 1) // 2].numpy().tobytes(), np.uint32)
    with replayed_noise(3):
        drawn = rounded_gaussian((count,), 8.0)
    wanted = looked_up(words[:count], table) + table.first
    assert drawn.tolist() == wanted.tolist()


def test_words_are_uniform_over_all_64_bits() -> None:
    words = random_words(20_000).numpy().view(np.uint64)
    bits = np.unpackbits(words.view(np.uint8)).reshape(20_000, 64).mean(0)
    assert (abs(bits - 0.5) < 5 * 0.5 / math.sqrt(20_000)).all()


@pytest.mark.parametrize("count", [4, 1000])
def test_forked_workers_draw_different_noise(count: int) -> None:
    random_words(count)  # the generator of many bytes has a state by now
    reader, writer = os.pipe()
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            os.write(writer, random_words(count).numpy().tobytes())
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    drawn = os.read(reader, 16 * count)
    own = random_words(count).numpy().tobytes()
    assert len({drawn[: 8 * count], drawn[8 * count :], own}) == 3


def test_a_seed_replays_the_noise_and_only_inside_its_context() -> None:
    with replayed_noise(5):
        one = rounded_gaussian((50,), 3.0)
    with replayed_noise(5):
        two = rounded_gaussian((50,), 3.0)
    assert torch.equal(one, two)
    assert not torch.equal(rounded_gaussian((50,), 3.0), one)


def test_another_thread_does_not_get_the_replayed_noise() -> None:
    drawn = []
    with replayed_noise(5):
        one = random_words(4)
        thread = threading.Thread(target=lambda: drawn.append(random_words(4)))
        thread.start()
        thread.join()
    assert not torch.equal(one, drawn[0])


def test_the_global_seed_is_neither_used_nor_moved() -> None:
    state = torch.get_rng_state()
    rounded_gaussian((10,), 3.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_asked_nothing_drawn() -> None:
    assert rounded_gaussian((0, 3), 2.0).shape == (0, 3)
