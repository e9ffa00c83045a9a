"""Execution engines: this process, worker processes or a cluster, with the same results."""

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from shieldnet.core.checks import choice, optional, whole
from shieldnet.core.errors import ConfigError

ENGINES = ("inline", "processes", "dask", "ray")
"""inline: in this process. The others are joblib's backends, loky for processes."""

_alone = threading.RLock()
_BACKENDS = {"inline": "sequential", "processes": "loky", "dask": "dask", "ray": "ray"}


def run(
    jobs: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]],
    *,
    engine: str = "processes",
    workers: int | None = None,
    done: Callable[[], object] = lambda: None,
) -> list[Any]:
    """Calls every job's function with its arguments and returns the results in order.

    Each job has one torch thread and its own random states, so that its result depends on neither
    the engine nor the other jobs. A single job runs in this process.
    engine: one of ``ENGINES``; Ray and Dask use the caller's cluster, and Ray starts a local one if
    there is none. workers: number of workers, by default the number of cores. done: called after
    each job.
    Errors: ConfigError for jobs that cannot be pickled; errors of a job are raised unchanged.
    """
    from joblib import Parallel, delayed, parallel_config

    choice("engine", engine, ENGINES)
    count = whole("workers", (os.cpu_count() or 1) if workers is None else workers, low=1)
    if len(jobs) <= 1 or (count == 1 and engine == "processes"):
        engine = "inline"
    if engine != "inline":
        _require_sendable(jobs)
    _register(engine)
    results = []
    # Ray's backend returns all results at once.
    kind = "list" if engine == "ray" else "generator"
    with parallel_config(backend=_BACKENDS[engine]):
        parallel = Parallel(n_jobs=min(count, len(jobs)), return_as=kind, batch_size=1)
        for result in parallel(delayed(alone)(function, *given) for function, given in jobs):
            results.append(result)
            done()
    return results


def alone(function: Callable[..., Any], *given: Any) -> Any:
    """Calls a function with one torch thread, and restores every global random state afterwards.

    Only one call runs per process at a time, since threads (of a Dask worker) share torch's and
    numpy's random states. Gradients are enabled, whatever the caller's mode.
    """
    with (
        _alone,
        one_thread(),
        kept_random_states(),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        return function(*given)


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread, since another order of summation would change the report."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def kept_random_states() -> Iterator[None]:
    """Restores torch's, numpy's and Python's global random states, which user code may set."""
    state, legacy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(legacy)


def _register(engine: str) -> None:
    if engine == "ray":
        optional("ray.util.joblib", extra="ray").register_ray()
    elif engine == "dask":
        distributed = optional("distributed", extra="dask")
        try:
            distributed.get_client()
        except ValueError as nobody:
            raise ConfigError(
                "engine='dask' needs a client: distributed.Client(address), or Client() for a "
                "cluster on this machine."
            ) from nobody


def why_unsendable(*values: object) -> str:
    """Returns why values cannot be sent to another process, or "" if they can."""
    import cloudpickle

    try:
        cloudpickle.dumps(values)
    except Exception as unsendable:  # an object's __reduce__ can raise anything
        return str(unsendable)
    return ""


def _require_sendable(jobs: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> None:
    if reason := why_unsendable(*jobs[:1]):
        raise ConfigError(
            f"The work cannot be sent to another process ({reason}). Use engine='inline', or a "
            "model, a train function and attacks that can be pickled."
        )
