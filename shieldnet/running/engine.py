"""Where long work runs: here, in processes, on a cluster; the same result everywhere."""

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

    Each job has one torch thread and random states of its own, so that its result depends on
    neither the engine nor the other jobs. One job runs here.
    engine: one of ``ENGINES``; workers: by default as many as there are cores; done is called
    after each job. For Ray and Dask the cluster is the one that the caller connected to; without
    one, Ray starts here.
    Errors: ConfigError for what cannot be sent to another process; what a job raises, as it is.
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
    # Ray's backend gives its results all at once.
    kind = "list" if engine == "ray" else "generator"
    with parallel_config(backend=_BACKENDS[engine]):
        parallel = Parallel(n_jobs=min(count, len(jobs)), return_as=kind, batch_size=1)
        for result in parallel(delayed(alone)(function, *given) for function, given in jobs):
            results.append(result)
            done()
    return results


def alone(function: Callable[..., Any], *given: Any) -> Any:
    """Calls a function with one torch thread, and puts every global random state back after it.

    One at a time in a process: threads (a Dask worker's) share torch's and numpy's random states.
    Gradients can be taken, whatever mode the caller is in.
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
    """Runs torch on one thread: sums in another order would make another report."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def kept_random_states() -> Iterator[None]:
    """Puts torch's, numpy's and Python's global random states back: a user's code may set them."""
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
    """Returns why values cannot be sent to another process, nothing where they can."""
    import cloudpickle

    try:
        cloudpickle.dumps(values)
    except Exception as unsendable:  # whatever an object's own reduction raises
        return str(unsendable)
    return ""


def _require_sendable(jobs: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> None:
    if reason := why_unsendable(*jobs[:1]):
        raise ConfigError(
            f"The work cannot be sent to another process ({reason}). Use engine='inline', or a "
            "model, a train function and attacks that can be pickled."
        )
