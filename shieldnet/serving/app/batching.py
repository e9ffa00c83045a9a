"""One thread that runs the model, on requests of several clients at once."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from threading import Condition, Thread

import torch
from torch import Tensor

Answers = dict[str, Tensor]
Ask = Callable[[Mapping[str, Tensor]], Answers]
"""Answers inputs by name with outputs by name, a row for each row."""


@dataclass(frozen=True)
class _Job:
    ask: Ask
    inputs: Mapping[str, Tensor]
    rows: int
    alone: bool
    future: "Future[Answers]" = field(default_factory=Future)

    def form(self) -> tuple[object, ...] | None:
        """Returns what requests share that fit into one batch; None for one that is alone."""
        if self.alone:
            return None
        kinds = ((name, one.dtype, one.shape[1:]) for name, one in self.inputs.items())
        return (self.ask, *kinds)


class Batcher:
    """Answers requests in batches of those that wait, first come, first served.

    max_rows: of a batch; a request with more is a batch of its own. wait_s: how long an idle model
    waits for more requests. timeout_s: how long the model may take for a batch before it counts as
    one that hangs, and how long the end waits for it. Where a batch fails, each of its requests is
    asked alone: none is hurt by another.
    """

    def __init__(self, *, max_rows: int, wait_s: float, timeout_s: float) -> None:
        self._max_rows, self._wait_s, self._timeout_s = max_rows, wait_s, timeout_s
        self._asked_s = math.inf  # when the model was asked what it has not answered yet
        self._waiting: deque[_Job] = deque()
        self._changed = Condition()
        self._closed = False
        self._thread = Thread(target=self._work, name="shieldnet-model", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Returns whether requests are answered: the thread runs, and the model does not hang."""
        hangs = time.monotonic() - self._asked_s > self._timeout_s
        return self._thread.is_alive() and not self._closed and not hangs

    def submit(
        self, ask: Ask, inputs: Mapping[str, Tensor], rows: int, *, alone: bool = False
    ) -> "Future[Answers]":
        """Returns a future of the answers; cancelled in time, the model is not asked.

        ask: what answers; requests to different ones are in different batches. alone: whether the
        request is a batch of its own, so that its answer is the same to the last digit when it is
        repeated.
        """
        job = _Job(ask, inputs, rows, alone)
        with self._changed:
            if self._closed:
                raise RuntimeError("The server is shutting down.")
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Answers what waits, and ends the thread, unless that takes longer than ``timeout_s``.

        A thread whose model hangs is left to the end of the process.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(self._timeout_s)

    def _work(self) -> None:
        while batch := self._next():
            live = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if live:
                self._run(live)

    def _next(self) -> list[_Job]:
        """Waits for requests, and takes those that fit the first one; none at the end."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            until = time.monotonic() + self._wait_s
            while (
                not self._closed
                and sum(job.rows for job in self._waiting) < self._max_rows
                and (left := until - time.monotonic()) > 0
            ):
                self._changed.wait(left)
            return self._taken()

    def _taken(self) -> list[_Job]:
        form, rows = self._waiting[0].form(), 0
        batch: list[_Job] = []
        kept: deque[_Job] = deque()
        for job in self._waiting:
            fits = form is not None and job.form() == form
            if not batch or (fits and rows + job.rows <= self._max_rows):
                batch.append(job)
                rows += job.rows
            else:
                kept.append(job)
        self._waiting = kept
        return batch

    def _run(self, batch: Sequence[_Job]) -> None:
        self._asked_s = time.monotonic()
        try:
            results = self._answers(batch)
        except BaseException as failed:  # of the model, which may raise anything
            if len(batch) == 1:
                batch[0].future.set_exception(_as_error(failed))
                return
            for job in batch:
                self._run([job])
            return
        finally:
            self._asked_s = math.inf
        for job, result in zip(batch, results, strict=True):
            job.future.set_result(result)

    def _answers(self, batch: Sequence[_Job]) -> list[Answers]:
        ask = batch[0].ask
        if len(batch) == 1:
            return [ask(batch[0].inputs)]
        asked = {name: torch.cat([job.inputs[name] for job in batch]) for name in batch[0].inputs}
        sizes = [job.rows for job in batch]
        parts = {name: answer.split(sizes) for name, answer in ask(asked).items()}
        return [{name: part[place] for name, part in parts.items()} for place in range(len(batch))]


def _as_error(failed: BaseException) -> Exception:
    """Returns what a future can hand on, with what was raised as its cause.

    Some exceptions would end the caller, or leave it waiting: StopIteration, GeneratorExit,
    SystemExit, and the errors of cancelling.
    """
    if isinstance(failed, Exception) and not isinstance(failed, StopIteration | CancelledError):
        return failed
    error = RuntimeError("The model raised what is no error.")
    error.__cause__ = failed
    return error
