"""Charges at the edge: an ASGI server's requests, before the application sees them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from shieldnet.core.checks import whole
from shieldnet.core.errors import BudgetExceeded, ConfigError, LedgerUnavailable
from shieldnet.serving import clients
from shieldnet.serving.ledger import Charge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_BODIES = {
    400: b'{"error":"bad request"}',
    401: b'{"error":"unauthorized"}',
    413: b'{"error":"too large"}',
    429: b'{"error":"budget exceeded"}',
    503: b'{"error":"unavailable"}',
}


class BudgetMiddleware:
    """Charges each request to its client, or refuses it, in front of any ASGI application.

    charge: ``guard.charge``, or ``(client, rows) -> Charge`` of your own. client: names who sends a
        request, from its ASGI scope, by what the client cannot choose (an authenticated user, never
        an address); None is refused. rows: counts the answers that a request's body asks for;
        ``rows_of_json`` by default; a ValueError is refused. free: paths that answer nothing of the
        model, such as ``("/health",)``, compared to the last character: every other is charged.
        max_bytes: of a body.

    Refusals have a constant body: 401 no client, 400 rows that cannot be counted, 413, 429 budget
    exceeded (with Retry-After where it renews), 503 no ledger. A websocket is closed: what it will
    ask cannot be counted. The application runs inside of ``client(name)``.
    Not promised: that the application gives no more answers than were counted, which a ``Guard``
    around the model does.
    """

    def __init__(
        self,
        app: App,
        *,
        charge: Callable[[str, int], Charge],
        client: Callable[[Scope], str | None],
        rows: Callable[[bytes], int] | None = None,
        free: Collection[str] = (),
        max_bytes: int = 16 * 2**20,
    ) -> None:
        if isinstance(free, str):
            raise ConfigError(f"Expected free as several paths, ({free!r},), got {free!r}.")
        self.app, self.charge, self.client = app, charge, client
        self.rows, self.free = rows or rows_of_json, frozenset(free)
        self.max_bytes = whole("max_bytes", max_bytes, low=1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, as ASGI has it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http" or scope["path"] in self.free:
            await self.app(scope, receive, send)
        else:
            await self._charged(scope, receive, send)

    async def _charged(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = self.client(scope)
        body = await _body(receive, self.max_bytes) if name else b""
        status, renews_at = await self._status(name, body)
        if status == 200 and name and body is not None:
            with clients.client(name):
                await self.app(scope, _again(body, receive), send)
        else:
            await _refuse(send, status, renews_at)

    async def _status(self, name: str | None, body: bytes | None) -> tuple[int, int | None]:
        """Charges a request, or says why not: its status, and when the budget renews."""
        if not name:
            return 401, None
        if body is None:
            return 413, None
        try:
            rows = whole("rows", self.rows(body), low=1)
            await asyncio.to_thread(self.charge, name, rows)
        except BudgetExceeded as exceeded:
            return 429, exceeded.renews_at
        except LedgerUnavailable:
            return 503, None
        except ValueError:  # of rows, and of a name that is no name
            return 400, None
        return 200, None


def rows_of_json(body: bytes) -> int:
    """Counts the rows of a JSON body: ``inputs``, ``instances`` or ``rows``, a list of rows.

    Also of the Open Inference Protocol, whose ``inputs`` are tensors with a ``shape``.
    Errors: ValueError for another form.
    """
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError("Expected a JSON object.")
    found = [document[name] for name in ("inputs", "instances", "rows") if name in document]
    if len(found) != 1 or not isinstance(found[0], list) or not found[0]:
        raise ValueError("Expected one list of rows.")
    tensors = [part for part in found[0] if isinstance(part, dict) and "shape" in part]
    if not tensors:
        return len(found[0])
    shapes = [part["shape"] for part in tensors]
    if len(tensors) < len(found[0]) or not all(isinstance(s, list) and s for s in shapes):
        raise ValueError("Expected every tensor with a shape.")
    return max(whole("rows", shape[0], low=0) for shape in shapes)


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
