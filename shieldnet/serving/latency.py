"""Response times in steps: an answer leaves at the next multiple after it is ready."""

import asyncio
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from shieldnet.core.checks import positive

_FINE_S = 0.003
_THREADS = 32


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
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Waits until the response time is a multiple of a step. start: when the request came.

    asyncio's timers end whole milliseconds after they begin, so on their own they would tell the
    fraction of a millisecond that the answer took: the last three are slept in a thread.
    """
    now = clock()
    due = now + left_s(now - start, step_s)
    if due - now > _FINE_S:
        await asyncio.sleep(due - now - _FINE_S)
    wait = asyncio.get_running_loop().run_in_executor
    await wait(_threads(), lambda: sleep(max(0.0, due - clock())))


def until_next_sync(
    start: float,
    step_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Does the same in a thread, which waits."""
    sleep(left_s(clock() - start, step_s))


@cache
def _threads() -> ThreadPoolExecutor:
    """Returns the threads that sleep for no longer than three milliseconds each."""
    return ThreadPoolExecutor(_THREADS, "shieldnet-steps")


if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_threads.cache_clear)
