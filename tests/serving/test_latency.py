"""A response time is a multiple of the step, whatever the answer took."""

import asyncio

import pytest

from shieldnet.core.errors import ConfigError
from shieldnet.serving.latency import left_s, until_next, until_next_sync


@pytest.mark.parametrize("took", [0.0, 0.001, 0.0499, 0.05, 0.0501, 0.12])
def test_a_response_time_is_the_next_multiple_of_the_step(took) -> None:
    total = took + left_s(took, 0.05)
    assert total / 0.05 == pytest.approx(round(total / 0.05))
    assert took <= total < took + 0.05


def test_both_forms_wait_as_long() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    asyncio.run(until_next(7.0, 0.25, clock=lambda: 7.1, sleep=sleep))
    until_next_sync(7.0, 0.25, clock=lambda: 7.1, sleep=slept.append)
    assert slept == pytest.approx([0.15, 0.15])


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), "1"])
def test_a_step_is_above_zero(step) -> None:
    with pytest.raises(ConfigError, match="step_s > 0"):
        left_s(0.1, step)
