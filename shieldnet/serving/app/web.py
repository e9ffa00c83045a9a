"""The addresses of the server, and the application that serves them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from importlib.metadata import version as version_of
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from torch import Tensor

from shieldnet.core.errors import ConfigError
from shieldnet.serving.app import refusals
from shieldnet.serving.app.answers import written_budgets, written_infer, written_predict
from shieldnet.serving.app.bodies import body_of, read_body, require_type
from shieldnet.serving.app.datatypes import OF_DTYPE
from shieldnet.serving.app.keys import ApiKeys
from shieldnet.serving.app.metrics import Metrics
from shieldnet.serving.app.openapi import describe
from shieldnet.serving.app.protocol import BINARY_HEADER
from shieldnet.serving.app.refusals import Refused
from shieldnet.serving.app.requests import Asked, read_infer, read_predict
from shieldnet.serving.app.served import ServedModel
from shieldnet.serving.app.service import Charging, Service
from shieldnet.serving.app.telling import HELD, REFUSAL, Telling
from shieldnet.shipping.description import TensorFacts

T = TypeVar("T")
JSON, BYTES = "application/json", "application/octet-stream"
PLATFORM = "shieldnet"
_OWN_VERSION = version_of("shieldnet")
_SMALL = 2**15  # bytes that are read or written sooner than another thread is asked to
_MAX_KEY = 200
_MODEL = "/v2/models/{name}"
_VERSION = "/v2/models/{name}/versions/{version}"


def make_app(guard: Charging, model: ServedModel, keys: ApiKeys) -> FastAPI:
    """Returns the application: the protocol, the plain route, health, and the OpenAPI document.

    guard: charges every request before the model is asked; it is closed with the application.
    model: its shield, as it is served, with the limits. ``app.state.metrics`` has the numbers for
    Prometheus, which no address gives out.
    A guard's watch looks at every request, as it does at calls of the guard.
    Errors: ConfigError for a guard of another shield than the model's, and for a watch that cannot
        look at what the model is asked.
    """
    if guard.shield is not model.shield:
        raise ConfigError(
            "Expected a guard of the shield that is served: ServedModel(guard.shield, ...)."
        )
    limits, metrics = model.limits, Metrics()
    service = Service(guard, model, metrics, getattr(guard, "watch", None))

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="shieldnet",
        version=_OWN_VERSION,
        lifespan=life,
        redirect_slashes=False,  # a redirect leads to the Host that the request names
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.metrics = metrics
    app.add_middleware(Telling, metrics=metrics, quantize_s=limits.quantize_latency_s)
    app.exception_handler(Refused)(_refused)
    app.exception_handler(HTTPException)(_no_route)
    _Routes(service, keys).add_to(app)
    describe(app)
    return app


async def _refused(request: Request, refused: Refused) -> Response:
    request.scope[REFUSAL] = refused
    return body_of(refused)


async def _no_route(request: Request, error: HTTPException) -> Response:
    """Answers for an address or a method that there is not."""
    refused = refusals.not_found()
    if error.status_code == 405:
        words = "This address takes another method."
        refused = Refused(405, "method", words, error.headers or {})
    return await _refused(request, refused)


class _Routes:
    """Holds what the addresses do."""

    def __init__(self, service: Service, keys: ApiKeys) -> None:
        self._service, self._keys, self._model = service, keys, service.model
        self._limits = self._model.limits

    def add_to(self, app: FastAPI) -> None:
        """Gives an application its addresses; health and readiness alone need no key."""
        gets: list[tuple[str, Callable[..., Any]]] = [
            ("/v2", self.server),
            ("/budget", self.budget),
            ("/v2/health/live", self.live),
            ("/v2/health/ready", self.ready),
            *((f"{path}/ready", self.model_ready) for path in (_MODEL, _VERSION)),
            *((path, self.metadata) for path in (_MODEL, _VERSION)),
        ]
        posts: list[tuple[str, Callable[..., Any]]] = [
            *((f"{path}/infer", self.infer) for path in (_MODEL, _VERSION)),
            ("/predict", self.predict),
        ]
        for method, routes in (("GET", gets), ("POST", posts)):
            for path, answer in routes:
                app.add_api_route(path, answer, methods=[method], response_model=None)

    async def live(self) -> Response:
        """Says that the server runs."""
        return JSONResponse({"live": True})

    async def ready(self) -> Response:
        """Says whether the server can charge and answer."""
        ready = await self._service.ready()
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def model_ready(self, request: Request) -> Response:
        """Says whether the model can be asked."""
        self._require_model(request)
        ready = await self._service.ready()
        return JSONResponse({"name": self._model.name, "ready": ready}, 200 if ready else 503)

    async def server(self, request: Request) -> Response:
        """Describes the server."""
        self._client(request)
        return JSONResponse(
            {"name": PLATFORM, "version": _OWN_VERSION, "extensions": ["binary_tensor_data"]}
        )

    async def budget(self, request: Request) -> Response:
        """Says what the client whose key it is has left; asking costs nothing."""
        client = self._client(request)
        self._take_place(request, client, None)
        return JSONResponse(written_budgets(await self._service.left(client)))

    async def metadata(self, request: Request) -> Response:
        """Describes the model's inputs and outputs."""
        self._client(request)
        self._require_model(request)
        return JSONResponse(
            {
                "name": self._model.name,
                "versions": [self._model.version],
                "platform": PLATFORM,
                "inputs": [_metadata(one) for one in self._model.inputs],
                "outputs": [_metadata(one) for one in self._model.outputs],
            }
        )

    async def infer(self, request: Request) -> Response:
        """Answers rows as the Open Inference Protocol has it; they are charged before."""
        client = self._client(request)
        self._require_model(request)
        require_type(request, JSON, BYTES)
        key = _idempotency_key(request)
        header, form = request.headers.get(BINARY_HEADER), self._model.form
        self._take_place(request, client, key)
        body = await read_body(request, self._limits)
        asked: Asked = await _soon(len(body), lambda: read_infer(body, header, form))
        answers = await self._service.answer(client, asked, key)
        name, version = self._model.name, self._model.version
        content, length = await _soon(
            _bytes_of(answers), lambda: written_infer(asked, answers, name, version)
        )
        if length is None:
            return Response(content, media_type=JSON)
        return Response(content, headers={BINARY_HEADER: str(length)}, media_type=BYTES)

    async def predict(self, request: Request) -> Response:
        """Answers rows of plain JSON with rows of plain JSON; they are charged before."""
        client = self._client(request)
        require_type(request, JSON)
        key = _idempotency_key(request)
        self._take_place(request, client, key)
        body = await read_body(request, self._limits)
        asked: Asked = await _soon(len(body), lambda: read_predict(body, self._model.form))
        answers = await self._service.answer(client, asked, key)
        content = await _soon(_bytes_of(answers), lambda: written_predict(answers))
        return Response(content, media_type=JSON)

    def _take_place(self, request: Request, client: str, key: str | None) -> None:
        """Takes a place until the answer leaves. Errors: Refused (503)."""
        held: ExitStack = request.scope[HELD]
        held.enter_context(self._service.place(client, key))

    def _client(self, request: Request) -> str:
        """Returns whose key came with a request. Errors: Refused (401)."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key")
        client = self._keys.client_of(given)
        if client is None:
            raise refusals.unknown_key()
        return client

    def _require_model(self, request: Request) -> None:
        given = request.path_params
        version = given.get("version", self._model.version)
        if (given["name"], version) != (self._model.name, self._model.version):
            raise refusals.not_found()


def _metadata(facts: TensorFacts) -> dict[str, object]:
    shape = [-1 if size is None else size for size in facts.shape]
    return {"name": facts.name, "datatype": OF_DTYPE[facts.dtype].name, "shape": shape}


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= _MAX_KEY and key.isascii() and key.isprintable()):
        raise refusals.malformed(
            f"Expected an Idempotency-Key of 1 to {_MAX_KEY} printable ASCII characters."
        )
    return key


def _bytes_of(answers: Mapping[str, Tensor]) -> int:
    return sum(answer.nbytes for answer in answers.values())


async def _soon(size: int, job: Callable[[], T]) -> T:
    """Reads or writes so many bytes: here where they are few, or else in another thread."""
    return job() if size <= _SMALL else await asyncio.to_thread(job)
