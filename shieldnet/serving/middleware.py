"""Charges at the edge: an ASGI server's requests, before the application sees them."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from hashlib import blake2b
from typing import Any

from shieldnet.core.checks import whole
from shieldnet.core.errors import BudgetExceeded, ConfigError, ShieldnetError
from shieldnet.serving import clients
from shieldnet.serving.ledger import Charge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_MAX_ID = 200
_MOST_LISTS, _MOST_NAMES, _MOST_AXES = 2**17, 2**14, 32
_READS = ("content-type", "content-encoding", "inference-header-content-length")
_BODIES = {
    400: b'{"error":"bad request"}',
    401: b'{"error":"unauthorized"}',
    413: b'{"error":"too large"}',
    422: b'{"error":"request id was used for another request"}',
    429: b'{"error":"budget exceeded"}',
    503: b'{"error":"unavailable"}',
}


class BudgetMiddleware:
    """Charges each request to its client, or refuses it, in front of any ASGI application.

    charge: ``guard.charge``, or ``(client, rows) -> Charge`` of your own, which takes ``key=`` and
        ``content=`` beside where request_id is given. client: names who sends a
        request, from its ASGI scope, by what the client cannot choose (an authenticated user, never
        an address); None is refused. rows: counts the answers that a request's body asks for;
        it must count what the application reads, and a ValueError is refused. ``rows_of_json``
        and, for the Open Inference Protocol, ``rows_of_protocol`` may do. free: paths that answer
        nothing of the model, such as ``("/health",)``, compared to the last character: every other
        is charged. max_bytes: of a body.
    request_id: the header that names a request (``"Idempotency-Key"``), whose repeats within a day
        are charged once; None for none. Repeats ask the same: method, path, query, body, and the
        headers named in ``reads``, which must be all that the application reads.

    Refusals have a constant body: 401 no client, 400 rows that cannot be counted, 413, 422 a name
    of another request, 429 budget exceeded (with Retry-After where it renews), 503 no ledger. A
    websocket is closed: what it will ask cannot be counted. The application runs inside of
    ``client(name)``.
    Not promised: that the application gives no more answers than were counted. A ``Guard`` around
    the model promises it, and charges by itself: use one of both.
    """

    def __init__(
        self,
        app: App,
        *,
        charge: Callable[..., Charge],
        client: Callable[[Scope], str | None],
        rows: Callable[[bytes], int],
        free: Collection[str] = (),
        max_bytes: int = 16 * 2**20,
        request_id: str | None = None,
        reads: Collection[str] = _READS,
    ) -> None:
        for setting, given in (("free", free), ("reads", reads)):
            if isinstance(given, str):
                raise ConfigError(
                    f"Expected {setting} as several words, ({given!r},), got {given!r}."
                )
        self.app, self.charge, self.client = app, charge, client
        self.rows, self.free = rows, frozenset(free)
        self.max_bytes = whole("max_bytes", max_bytes, low=1)
        self.request_id = None if request_id is None else request_id.lower().encode()
        self.reads = frozenset(name.lower().encode() for name in reads)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, as ASGI has it."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in self.free):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._charged(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            raise ConfigError(f"Expected a request of HTTP, got {scope['type']!r}: not charged.")

    async def _charged(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = self.client(scope)
        body = await _body(receive, self.max_bytes) if name else b""
        status, renews_at = await self._status(name, body, scope)
        if status == 200 and name and body is not None:
            with clients.client(name):
                await self.app(scope, _again(body, receive), send)
        else:
            await _refuse(send, status, renews_at)

    async def _status(
        self, name: str | None, body: bytes | None, scope: Scope
    ) -> tuple[int, int | None]:
        """Charges a request, or says why not: its status, and when the budget renews."""
        if not name:
            return 401, None
        if body is None:
            return 413, None
        try:
            rows = whole("rows", await asyncio.to_thread(self.rows, body), low=1)
            named = self._named(scope, body)
        except (ValueError, RecursionError):
            return 400, None
        try:
            await asyncio.to_thread(self.charge, name, rows, **named)
        except BudgetExceeded as exceeded:
            return 429, exceeded.renews_at
        except ConfigError:
            return (422 if named else 503), None
        except ShieldnetError:  # no ledger, or a name or a setting that is wrong
            return 503, None
        return 200, None

    def _named(self, scope: Scope, body: bytes) -> dict[str, Any]:
        """Returns the name of a request and a hash of what it asks, if it has one.

        Errors: ValueError for a name that is none, or several.
        """
        if self.request_id is None:
            return {}
        given = [value for name, value in scope["headers"] if name.lower() == self.request_id]
        if not given:
            return {}
        key = given[0].decode("ascii", "replace")
        if len(given) > 1 or not (0 < len(key) <= _MAX_ID and key.isascii() and key.isprintable()):
            raise ValueError("Expected one name of a request, of printable characters.")
        asked = blake2b(digest_size=32)
        parts = [scope.get("method", "").encode(), scope["path"].encode()]
        parts += [scope.get("raw_path") or b"", scope.get("query_string", b""), body]
        for pair in scope["headers"]:
            if pair[0].lower() in self.reads:
                parts += pair
        for part in parts:
            asked.update(len(part).to_bytes(8, "big"))
            asked.update(part)
        return {"key": key, "content": asked.digest()}


def rows_of_json(body: bytes) -> int:
    """Counts the rows of a JSON body: ``inputs``, ``instances`` or ``rows``, a list of rows.

    Errors: ValueError for another form, and for a name that comes twice.
    """
    document = _parsed(body)
    if not isinstance(document, dict):
        raise ValueError("Expected a JSON object.")
    found = [document[name] for name in ("inputs", "instances", "rows") if name in document]
    if len(found) != 1 or not isinstance(found[0], list) or not found[0]:
        raise ValueError("Expected one list of rows.")
    return len(found[0])


def rows_of_protocol(body: bytes) -> int:
    """Counts the rows of a request of the Open Inference Protocol in JSON: its longest tensor's.

    Errors: ValueError for another form, and for a shape that does not fit its numbers.
    """
    document = _parsed(body)
    tensors = document.get("inputs") if isinstance(document, dict) else None
    if not isinstance(tensors, list) or not tensors:
        raise ValueError("Expected a list of tensors.")
    rows = 0
    for tensor in tensors:
        shape = tensor.get("shape") if isinstance(tensor, dict) else None
        if not isinstance(shape, list) or not shape or not isinstance(tensor.get("data"), list):
            raise ValueError("Expected every tensor with a shape and data.")
        sizes = [whole("shape", size, low=0) for size in shape]
        if math.prod(sizes) != _numbers(tensor["data"]):
            raise ValueError("Expected as many numbers as the shape says.")
        rows = max(rows, sizes[0])
    return rows


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("Expected every name once: parsers do not agree on which one counts.")
    return document


def _parsed(body: bytes) -> Any:
    """Parses JSON that makes no more objects than rows need: a parser stops everybody meanwhile."""
    if body.count(b"[") > _MOST_LISTS or body.count(b"{") > _MOST_NAMES:
        raise ValueError("Expected fewer lists and objects.")
    return json.loads(body, object_pairs_hook=_once)


def _numbers(data: list[Any]) -> int:
    """Counts what is in nested lists and is no list."""
    count, level = 0, data
    for _ in range(_MOST_AXES):
        lists = [part for part in level if isinstance(part, list)]
        count += len(level) - len(lists)
        if not lists:
            return count
        level = [part for one in lists for part in one]
    raise ValueError(f"Expected at most {_MOST_AXES} axes.")


async def _body(receive: Receive, max_bytes: int) -> bytes | None:
    """Reads a body; None if it is longer than allowed, or never ends."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > max_bytes:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read to the application."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


async def _refuse(send: Send, status: int, renews_at: int | None = None) -> None:
    headers = [(b"content-type", b"application/json")]
    if renews_at is not None:
        wait = max(1, renews_at - int(time.time()))
        headers.append((b"retry-after", str(wait).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": _BODIES[status]})
