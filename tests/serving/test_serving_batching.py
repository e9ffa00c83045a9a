"""Requests of several clients share a batch, and none notices another."""

import asyncio
import threading
import time
from concurrent.futures import CancelledError

import pytest
import torch

from shieldnet.serving.app.batching import Batcher


class Model:
    """Doubles rows; holds the first call until it is let go; fails on negative numbers."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.entered, self.may_go = threading.Event(), threading.Event()

    def __call__(self, inputs):
        x = inputs["x"]
        self.batches.append(len(x))
        self.entered.set()
        assert self.may_go.wait(30)
        if (x < 0).any():
            raise ValueError("negative")
        return {"y": 2 * x, "z": x.sum(1)}


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def batcher(model):
    batcher = Batcher(max_rows=8, wait_s=0.0, timeout_s=30.0)
    batcher.start()
    yield batcher
    model.may_go.set()
    batcher.close()


def busy(model, batcher) -> None:
    """Lets the model be held by a first request, so that what comes next waits together."""
    batcher.submit(model, {"x": torch.zeros(1, 2)}, 1)
    assert model.entered.wait(30)


def ask(model, batcher, value, rows=2, width=2, **more):
    return batcher.submit(model, {"x": torch.full((rows, width), float(value))}, rows, **more)


def test_what_waits_is_answered_in_one_batch_each_with_its_own_rows(model, batcher) -> None:
    busy(model, batcher)
    futures = [ask(model, batcher, value) for value in (1, 2, 3)]
    model.may_go.set()
    for value, future in zip((1, 2, 3), futures, strict=True):
        answers = future.result(30)
        assert torch.equal(answers["y"], torch.full((2, 2), 2.0 * value))
        assert torch.equal(answers["z"], torch.full((2,), 2.0 * value))
    assert model.batches == [1, 6]


def test_a_batch_has_no_more_rows_than_it_may(model, batcher) -> None:
    busy(model, batcher)
    futures = [ask(model, batcher, 1, rows=3) for _ in range(5)] + [ask(model, batcher, 1, rows=9)]
    model.may_go.set()
    assert [len(future.result(30)["y"]) for future in futures] == [3] * 5 + [9]
    assert sorted(model.batches) == [1, 3, 6, 6, 9]


def test_other_shapes_and_types_wait_for_a_batch_of_their_own(model, batcher) -> None:
    busy(model, batcher)
    futures = [ask(model, batcher, 1), ask(model, batcher, 1, width=3), ask(model, batcher, 1)]
    futures.append(batcher.submit(model, {"x": torch.ones(2, 2, dtype=torch.float64)}, 2))
    model.may_go.set()
    assert [future.result(30)["y"].shape[1] for future in futures] == [2, 3, 2, 2]
    assert model.batches == [1, 4, 2, 2]


def test_requests_to_another_shield_wait_for_a_batch_of_their_own(model, batcher) -> None:
    asked = []

    def harder(inputs):
        asked.append(len(inputs["x"]))
        return {"y": inputs["x"]}

    busy(model, batcher)
    futures = [ask(one, batcher, 1) for one in (model, harder, model, harder)]
    model.may_go.set()
    assert [float(future.result(30)["y"][0, 0]) for future in futures] == [2, 1, 2, 1]
    assert (model.batches, asked) == ([1, 4], [4])


def test_a_request_that_may_be_repeated_is_alone(model, batcher) -> None:
    busy(model, batcher)
    futures = [
        ask(model, batcher, 1),
        ask(model, batcher, 1, alone=True),
        ask(model, batcher, 1, alone=True),
    ]
    model.may_go.set()
    for future in futures:
        future.result(30)
    assert model.batches == [1, 2, 2, 2]


def test_one_bad_request_hurts_no_neighbor(model, batcher) -> None:
    busy(model, batcher)
    good, bad, last = ask(model, batcher, 1), ask(model, batcher, -1), ask(model, batcher, 2)
    model.may_go.set()
    assert torch.equal(good.result(30)["y"], torch.full((2, 2), 2.0))
    assert torch.equal(last.result(30)["y"], torch.full((2, 2), 4.0))
    with pytest.raises(ValueError, match="negative"):
        bad.result(30)
    assert model.batches == [1, 6, 2, 2, 2]


def test_a_cancelled_request_is_not_asked(model, batcher) -> None:
    busy(model, batcher)
    gone, kept = ask(model, batcher, 1), ask(model, batcher, 2)
    assert gone.cancel()
    model.may_go.set()
    kept.result(30)
    with pytest.raises(CancelledError):
        gone.result(30)
    assert model.batches == [1, 2]


def test_closing_answers_what_waits_and_takes_no_more(model, batcher) -> None:
    busy(model, batcher)
    futures = [ask(model, batcher, value) for value in range(20)]
    model.may_go.set()
    batcher.close()
    assert all(future.done() for future in futures)
    assert not batcher.alive
    with pytest.raises(RuntimeError, match="shutting down"):
        ask(model, batcher, 1)


def test_an_idle_model_waits_for_more_requests() -> None:
    model = Model()
    model.may_go.set()
    batcher = Batcher(max_rows=4, wait_s=600.0, timeout_s=30.0)  # ended by the rows, not by time
    batcher.start()
    futures = [ask(model, batcher, 1), ask(model, batcher, 2)]
    for future in futures:
        future.result(60)
    batcher.close()
    assert model.batches == [4]


def test_a_model_that_hangs_is_not_alive_and_holds_up_no_end(model) -> None:
    batcher = Batcher(max_rows=8, wait_s=0.0, timeout_s=0.01)
    batcher.start()
    busy(model, batcher)
    for _ in range(1000):
        if not batcher.alive:
            break
        time.sleep(0.01)
    assert not batcher.alive
    ender = threading.Thread(target=batcher.close, daemon=True)
    ender.start()
    ender.join(10)
    assert not ender.is_alive()
    model.may_go.set()


@pytest.mark.parametrize(
    "kind", [StopIteration, GeneratorExit, SystemExit, CancelledError, asyncio.CancelledError]
)
def test_whatever_the_model_raises_its_request_gets_an_error_and_the_next_is_answered(kind) -> None:
    raised = [kind("secret"), kind("secret")]

    def answer(inputs):
        if raised:
            raise raised.pop()
        return {"y": inputs["x"]}

    batcher = Batcher(max_rows=8, wait_s=0.0, timeout_s=30.0)
    batcher.start()

    async def asked() -> None:
        await asyncio.wait_for(asyncio.wrap_future(ask(answer, batcher, 1)), 10)

    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^The model raised what is no error\.$") as failed:
            asyncio.run(asked())
        assert type(failed.value.__cause__) is kind
    asyncio.run(asked())
    batcher.close()
