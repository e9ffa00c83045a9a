"""What a watch decides about requests to a server: which shield answers, or none."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from shieldnet.core.errors import ConfigError, DataError
from shieldnet.serving.app import refusals
from shieldnet.serving.app.metrics import Metrics
from shieldnet.serving.app.requests import Asked
from shieldnet.serving.app.served import ServedModel
from shieldnet.serving.query_patterns import Profile, require_numbers
from shieldnet.serving.watch import QueriesRefused, Watch, WatchPolicy


def watch_of(model: ServedModel, natural: Any, policy: WatchPolicy) -> Watch:
    """Learns what is ordinary from natural inputs, whose first tensor is looked at.

    natural: 200 rows or more, as an example of the model's inputs.
    Errors: DataError for fewer rows, tokens, and numbers that are not finite.
    """
    given = model.by_name(natural)
    parts = zip(*(value.split(model.limits.max_rows) for value in given.values()), strict=True)
    released = [model.ask(dict(zip(given, part, strict=True)))[model.main] for part in parts]
    first = given[model.inputs[0].name]
    distribution = model.shield.distribution(torch.cat(released))
    return Watch(Profile.of(first.cpu(), distribution.cpu()), policy)


class Watching:
    """Has a watch choose which shield answers a request, and look at the answer.

    Requests of one client are answered in turn, so that each is judged by all before it.
    Errors: ConfigError for a watch that cannot look at what the model is asked, and for a harder
    shield that costs more or has other outputs.
    """

    def __init__(self, watch: Watch, model: ServedModel, metrics: Metrics) -> None:
        _require_fit(watch, model)
        self._watch, self._model, self._metrics = watch, model, metrics
        self._harder = model.behind(watch.harder_than(model.shield))
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def require_numbers(self, asked: Asked) -> None:
        """Refuses what the watch could not look at, before it is charged. Errors: Refused (400)."""
        first = asked.inputs[self._model.inputs[0].name]
        shape = self._watch.profile.scale.shape
        if first.shape[1:] != shape:
            raise refusals.malformed(f"Expected rows of {list(shape)}.")
        try:
            require_numbers(first)
        except DataError:
            raise refusals.malformed("Expected finite numbers.") from None

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Waits for the client's earlier requests. Errors: Refused (503) if that takes too long."""
        lock = self._turns.setdefault(client, asyncio.Lock())
        try:
            await asyncio.wait_for(lock.acquire(), self._model.limits.timeout_s)
        except asyncio.TimeoutError:
            raise refusals.busy() from None
        try:
            yield
        finally:
            lock.release()

    def choose(self, client: str) -> ServedModel:
        """Returns the model behind the shield that answers. Errors: Refused (429)."""
        try:
            chosen = self._watch.choose(client, self._model.shield)
        except QueriesRefused as refused:
            raise refusals.watched(refused.renews_at) from None
        model = self._model if chosen is self._model.shield else self._harder
        self._metrics.watched(is_harder=model is self._harder)
        return model

    def note(
        self, client: str, asked: Asked, answers: Mapping[str, Tensor], by: ServedModel
    ) -> None:
        """Looks at what was asked, and at what the model released."""
        first = asked.inputs[self._model.inputs[0].name]
        found = self._watch.note(client, first, by.shield.distribution(answers[by.main]))
        self._metrics.suspected(found.score)


def _require_fit(watch: Watch, model: ServedModel) -> None:
    first, shape = model.inputs[0], watch.profile.scale.shape
    fits = len(first.shape) == len(shape) + 1 and all(
        size in (None, natural) for size, natural in zip(first.shape[1:], shape, strict=True)
    )
    if first.dtype == "int64" or not fits:
        raise ConfigError(
            f"Expected a watch of the model's first input, {first.name}, which is {first.dtype} of "
            f"shape {first.shape}, got one of rows of {tuple(shape)}. Of int64, which may be "
            "tokens, distances mean nothing."
        )
    if model.limits.max_rows > watch.profile.memory:
        raise ConfigError(
            f"Expected max_rows <= {watch.profile.memory}, the queries that the watch remembers, "
            f"got max_rows={model.limits.max_rows}: a request is judged before the next."
        )
