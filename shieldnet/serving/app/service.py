"""What happens to a request between its reading and its answer: it is charged, then asked."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any, Protocol, TypeVar

from torch import Tensor

from shieldnet.core.errors import (
    AnswerError,
    BudgetExceeded,
    ConfigError,
    DataError,
    LedgerUnavailable,
)
from shieldnet.serving.app import refusals
from shieldnet.serving.app.batching import Batcher
from shieldnet.serving.app.metrics import Metrics
from shieldnet.serving.app.requests import Asked
from shieldnet.serving.app.served import ServedModel
from shieldnet.serving.app.watching import Watching
from shieldnet.serving.budget import Balance
from shieldnet.serving.watch import Watch
from shieldnet.shield.module import Shield

T = TypeVar("T")
_PROBE_EVERY_S = 1.0
_THREADS = 8
_OTHERS = 3  # for each place that a client has, so many are free, or it takes no other


class Charging(Protocol):
    """Charges a client before it is answered, as a Guard does."""

    shield: Shield

    def charge(
        self, client: str, rows: int = 1, *, key: str | None = None, content: bytes | None = None
    ) -> Any:
        """Charges ``rows`` answers, or raises BudgetExceeded or LedgerUnavailable."""

    def left(self, client: str) -> tuple[Balance, ...]:
        """Returns what the client has left."""

    def require_writable(self) -> None:
        """Raises LedgerUnavailable where no charge could be recorded now."""

    def close(self) -> None:
        """Closes the ledger."""


class Service:
    """Charges and answers requests of clients whose names are known.

    No answer leaves it that was not charged before: the model gets inputs after the charge is
    durable. A request that fails after that stays charged.
    """

    def __init__(
        self, guard: Charging, model: ServedModel, metrics: Metrics, watch: Watch | None = None
    ) -> None:
        self.model, self.metrics = model, metrics
        self._watching = None if watch is None else Watching(watch, model, metrics)
        self._guard, self._limits = guard, model.limits
        limits = model.limits
        self._batcher = Batcher(
            max_rows=limits.max_batch_rows,
            wait_s=limits.batch_wait_s,
            timeout_s=limits.timeout_s,
        )
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="shieldnet-charge")
        # Who looks at budgets waits for nobody who is charged, and nobody for him.
        self._looks = ThreadPoolExecutor(1, thread_name_prefix="shieldnet-left")
        self._probe = ThreadPoolExecutor(1, thread_name_prefix="shieldnet-ready")
        self._served: Counter[str] = Counter()  # requests by client
        self._open: set[tuple[str, str]] = set()  # clients and keys of requests that may repeat
        self._probed_s, self._was_ready = -_PROBE_EVERY_S, False

    def start(self) -> None:
        """Starts the thread of the model."""
        self._batcher.start()

    def close(self) -> None:
        """Answers what waits, then closes the ledger, each for ``timeout_s`` at most.

        A call of the ledger that hangs is left to the end of the process.
        """
        self._batcher.close()
        for pool in (self._pool, self._looks, self._probe):
            pool.shutdown(wait=False, cancel_futures=True)
        closing = Thread(target=self._close_guard, name="shieldnet-close", daemon=True)
        closing.start()
        closing.join(self._limits.timeout_s)

    def _close_guard(self) -> None:
        with suppress(LedgerUnavailable):  # what leases hold stays charged then
            self._guard.close()

    async def answer(self, client: str, asked: Asked, key: str | None) -> dict[str, Tensor]:
        """Charges a client who has a place, and returns the answers by name.

        key: names a request that may be repeated without another charge.
        Errors: Refused, whatever happens.
        """
        watching = self._watching
        if watching is None:
            await self._charge(client, asked, key)
            return await self._answer(self.model, asked, alone=key is not None)
        watching.require_numbers(asked)
        async with watching.turn(client):
            model = watching.choose(client)
            # What the watch's harder shield says is no repeat of what this one said.
            own_key = key if model is self.model else None
            await self._charge(client, asked, own_key)
            answers = await self._answer(model, asked, alone=own_key is not None)
            try:
                await self._within(self._pool, lambda: watching.note(client, asked, answers, model))
            except asyncio.TimeoutError:
                raise refusals.late() from None
        return answers

    @contextmanager
    def place(self, client: str, key: str | None) -> Iterator[None]:
        """Takes one of the places for requests, before its body is read.

        A client takes one while it has fewer than a third of those that are free: alone a quarter
        of all, and four that take what they can two thirds. Of its requests with one key a single
        one is open.
        Errors: Refused (503).
        """
        repeatable = {(client, key)} if key is not None else set()
        if (
            self._served[client] * _OTHERS >= self._limits.max_requests - self._served.total()
            or repeatable & self._open
            or not self._batcher.alive
        ):
            raise refusals.busy()
        self._served[client] += 1
        self._open |= repeatable
        try:
            yield
        finally:
            self._served[client] -= 1
            if not self._served[client]:
                del self._served[client]
            self._open -= repeatable

    async def _charge(self, client: str, asked: Asked, key: str | None) -> None:
        content = None if key is None else asked.digest()
        try:
            charge = await self._within(
                self._pool, lambda: self._guard.charge(client, asked.rows, key=key, content=content)
            )
        except BudgetExceeded as spent:
            wait_s = None if spent.renews_at is None else int(spent.renews_at - time.time()) + 1
            raise refusals.spent(wait_s) from None
        except LedgerUnavailable:
            raise refusals.no_ledger() from None
        except asyncio.TimeoutError:  # its thread goes on, and may charge yet
            raise refusals.unsure() from None
        except ConfigError:
            if key is None:
                raise
            raise refusals.key_reused() from None
        if not getattr(charge, "repeated", False):
            self.metrics.charged(asked.rows)
        if self.metrics.wants_left():
            self._looks.submit(self._observe, client)

    def _observe(self, client: str) -> None:
        """Counts what a client has left; a ledger that does not answer shows at the next charge."""
        with suppress(LedgerUnavailable):
            self.metrics.left(self._guard.left(client))

    async def _answer(self, model: ServedModel, asked: Asked, *, alone: bool) -> dict[str, Tensor]:
        future = self._batcher.submit(model.ask, asked.inputs, asked.rows, alone=alone)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._limits.timeout_s)
        except (AnswerError, DataError):
            raise refusals.unanswerable() from None
        except asyncio.TimeoutError:
            raise refusals.late() from None

    async def left(self, client: str) -> tuple[Balance, ...]:
        """Returns what a client has left of each of its budgets. Errors: Refused (503)."""
        try:
            return await self._within(self._looks, lambda: self._guard.left(client))
        except (LedgerUnavailable, asyncio.TimeoutError):
            raise refusals.no_ledger() from None

    async def _within(self, pool: ThreadPoolExecutor, job: Callable[[], T]) -> T:
        running = asyncio.get_running_loop().run_in_executor(pool, job)
        return await asyncio.wait_for(running, self._limits.timeout_s)

    async def ready(self) -> bool:
        """Returns whether a charge and an answer are possible; asks the ledger once a second."""
        if time.monotonic() - self._probed_s >= _PROBE_EVERY_S:
            self._probed_s = time.monotonic()
            try:
                await self._within(self._probe, self._guard.require_writable)
            except (LedgerUnavailable, asyncio.TimeoutError):
                self._was_ready = False
            else:
                self._was_ready = True
        return self._was_ready and self._batcher.alive
