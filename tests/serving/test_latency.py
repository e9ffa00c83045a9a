"""A response time is a multiple of the step, whatever the answer took."""

import asyncio
import math
import multiprocessing
import os
import time

import pytest

from shieldnet.core.errors import ConfigError
from shieldnet.serving.latency import left_s, until_next, until_next_sync

FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


@pytest.mark.parametrize("took", [0.0, 0.001, 0.0499, 0.05, 0.0501, 0.12])
def test_a_response_time_is_the_next_multiple_of_the_step(took) -> None:
    total = took + left_s(took, 0.05)
    assert total / 0.05 == pytest.approx(round(total / 0.05))
    assert took <= total < took + 0.05


class Clock:
    """Time as an event loop has it: its timers end whole milliseconds after they begin."""

    def __init__(self) -> None:
        self.now = 7.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def sleep_in_loop(self, seconds: float) -> None:
        self.now += math.ceil(seconds * 1e3) / 1e3


@pytest.mark.parametrize("took", [0.0001, 0.0103, 0.0109, 0.2471, 0.2499, 0.2501])
def test_an_answer_that_is_awaited_leaves_at_the_step_and_no_fraction_later(
    monkeypatch, took
) -> None:
    clock = Clock()
    monkeypatch.setattr("shieldnet.serving.latency.asyncio.sleep", clock.sleep_in_loop)

    async def answer() -> None:
        clock.sleep(took)
        await until_next(7.0, 0.25, clock=clock, sleep=clock.sleep)

    asyncio.run(answer())
    assert clock.now == pytest.approx(7.0 + math.ceil(took / 0.25) * 0.25, abs=1e-9)


def test_a_thread_waits_as_long() -> None:
    slept: list[float] = []
    until_next_sync(7.0, 0.25, clock=lambda: 7.1, sleep=slept.append)
    assert slept == pytest.approx([0.15])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_waits_with_threads_of_its_own() -> None:
    asyncio.run(until_next(time.monotonic(), 0.001))
    child = FORK.Process(target=lambda: asyncio.run(until_next(time.monotonic(), 0.001)))
    child.start()
    child.join(20)
    hangs = child.is_alive()
    child.kill()
    assert not hangs


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), "1"])
def test_a_step_is_above_zero(step) -> None:
    with pytest.raises(ConfigError, match="step_s > 0"):
        left_s(0.1, step)
