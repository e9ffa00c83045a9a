import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import shieldnet as sn
from shieldnet.running.engine import alone, run


def noisy(seed: int) -> tuple[float, int]:
    """Moves every global seed, as a user's own code may, and sums in torch's order."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    values = torch.randn(300, 300) @ torch.randn(300, 300)
    return float(values.sum()), torch.get_num_threads()


def fails(_: int) -> None:
    raise KeyError("theirs")


JOBS = [(noisy, (seed,)) for seed in range(4)]


def test_every_engine_gives_the_same_to_the_last_bit() -> None:
    here = run(JOBS, engine="inline")
    assert run(JOBS, engine="processes", workers=2) == here
    assert {threads for _, threads in here} == {1}


def test_a_local_ray_gives_the_same_to_the_last_bit() -> None:
    ray = pytest.importorskip("ray")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )
    try:
        assert run(JOBS, engine="ray", workers=2) == run(JOBS, engine="inline")
    finally:
        ray.shutdown()


def test_global_random_states_and_threads_are_put_back() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    threads = torch.get_num_threads()
    run(JOBS, engine="inline")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    assert torch.get_num_threads() == threads


def test_every_job_that_is_done_is_told() -> None:
    told = []
    run(JOBS, engine="inline", done=lambda: told.append(1))
    assert len(told) == 4


def test_what_a_job_raises_comes_through() -> None:
    with pytest.raises(KeyError, match="theirs"):
        run([(fails, (0,)), (fails, (1,))], engine="processes", workers=2)


def test_unknown_engines_and_what_cannot_be_sent_are_refused() -> None:
    with pytest.raises(
        sn.errors.ConfigError, match="Expected engine to be one of inline, processes"
    ):
        run(JOBS, engine="cloud")
    stuck = (x for x in range(3))
    with pytest.raises(sn.errors.ConfigError, match="cannot be sent to another process"):
        run([(noisy, (stuck,)), (noisy, (stuck,))], engine="processes", workers=2)


def test_dask_without_its_package_or_a_client_says_what_to_do() -> None:
    with pytest.raises(sn.errors.ShieldnetError, match=r"\.\[dask\]|needs a client"):
        run(JOBS, engine="dask")


def draws(seed: int) -> float:
    torch.manual_seed(seed)
    drawn = [float(torch.rand(()) + np.random.RandomState(seed).rand()) for _ in range(200)]
    return sum(drawn)


def test_jobs_in_threads_of_one_process_do_not_disturb_each_other() -> None:
    """A Dask worker runs several jobs in threads, which share torch's random state."""
    here = [alone(draws, seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda seed: alone(draws, seed), range(8))) == here


def test_no_workers_are_refused() -> None:
    with pytest.raises(sn.errors.ConfigError, match="Expected workers >= 1"):
        run(JOBS, engine="processes", workers=0)
