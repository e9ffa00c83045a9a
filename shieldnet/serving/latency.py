"""Response times in steps: an answer leaves at the next multiple after it is ready."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from shieldnet.core.checks import positive


def left_s(elapsed_s: float, step_s: float) -> float:
    """Returns the seconds until the next multiple of a step, none at a multiple itself.

    elapsed_s: since the request came. step_s: above 0; longer than the slowest answer, or the
    number of steps tells what it takes.
    """
    step_s = positive("step_s", step_s)
    return max(0.0, math.ceil(elapsed_s / step_s) * step_s - elapsed_s)


async def until_next(
    start: float,
    step_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Waits until the response time is a multiple of a step. start: when the request came."""
    await sleep(left_s(clock() - start, step_s))


def until_next_sync(
    start: float,
    step_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Does the same in a thread, which waits."""
    sleep(left_s(clock() - start, step_s))
