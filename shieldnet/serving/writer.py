"""One thread writes to the store: charges that wait are decided together, in one transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from shieldnet.core.errors import LedgerUnavailable, ShieldnetError
from shieldnet.serving.settling import Ask, Settler

T = TypeVar("T")
# Two accounts each, with room for several budgets, stay below every store's limits.
_MAX_GROUP = 100


class Writer:
    """Settles charges in the order in which they came, one group after the other."""

    def __init__(self, settler: Settler) -> None:
        self._settler = settler
        self._queue: SimpleQueue[tuple[Ask | Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def ask(self, ask: Ask) -> Future[bool]:
        """Hands in a charge; its result is whether it was charged before."""
        return self._put(ask)

    def run(self, job: Callable[[], T], timeout_s: float | None = None) -> T:
        """Runs a job between two groups, where no other thread uses the store; None: waits."""
        result: T = self._put(job).result(timeout_s)
        return result

    def _put(self, work: Ask | Callable[[], Any], *, is_last: bool = False) -> Future[Any]:
        future: Future[Any] = Future()
        with self._starting:
            if self._closed:
                raise closed()
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="shieldnet-ledger", daemon=True)
                thread.start()
                self._thread = thread
            self._closed = is_last
            self._queue.put((work, future))
        return future

    def close(self, last: Callable[[], None], timeout_s: float) -> None:
        """Settles what was handed in, does one last job and ends.

        Errors: TimeoutError of futures; the thread is left to the end of the process then.
        """
        self._put(last, is_last=True).result(timeout_s)

    def _work(self) -> None:
        while True:
            group, job = self._next()
            if group:
                self._settle(group)
            if job is not None:
                _run(*job)
                if self._closed and self._queue.empty():
                    return

    def _next(
        self,
    ) -> tuple[list[tuple[Ask, Future[Any]]], tuple[Callable[[], Any], Future[Any]] | None]:
        """Waits for work, and takes all charges that wait, up to the first job."""
        group: list[tuple[Ask, Future[Any]]] = []
        work, future = self._queue.get()
        while isinstance(work, Ask):
            group.append((work, future))
            if len(group) == _MAX_GROUP:
                return group, None
            try:
                work, future = self._queue.get_nowait()
            except Empty:
                return group, None
        return group, (work, future)

    def _settle(self, handed_in: list[tuple[Ask, Future[Any]]]) -> None:
        # Who has given up waiting is not charged.
        group = [
            (ask, future) for ask, future in handed_in if future.set_running_or_notify_cancel()
        ]
        if not group:
            return
        try:
            outcomes = self._settler.settle([ask for ask, _ in group])
        except BaseException as failed:
            for _, future in group:
                future.set_exception(failed)
            return
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, ShieldnetError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


def _run(job: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(job())
    except BaseException as failed:
        future.set_exception(failed)


def closed() -> LedgerUnavailable:
    """Says that a ledger was closed."""
    return LedgerUnavailable("The ledger was closed. Open it again to charge for answers.")
