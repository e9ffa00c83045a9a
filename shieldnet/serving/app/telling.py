"""What logs and numbers say of a request, and when its answer is sent."""

import json
import logging
import secrets
import time
from collections.abc import Mapping
from contextlib import ExitStack
from time import monotonic
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shieldnet.serving.app.bodies import READ, body_of
from shieldnet.serving.app.metrics import Metrics
from shieldnet.serving.app.refusals import Refused, failed
from shieldnet.serving.latency import until_next

REFUSAL = "shieldnet.refusal"
"""Where the scope of a request holds its Refused."""
HELD = "shieldnet.held"
"""Where the scope of a request holds an ExitStack: what it holds until its answer leaves."""
_log = logging.getLogger("shieldnet.serving")


class Telling:
    """Logs a line of JSON for each request, counts it, and sends its answer in time.

    A line has the route, status, reason of a refusal, and seconds; never an address with its
    values, a header, a client, an input or an answer. What is raised below becomes one body.
    quantize_s: the first byte of an answer leaves at a multiple of this after the last byte of its
    body was read, or after the request arrived if it was not; None for at once. What the request
    holds is let go at the same moment, as whether it is free tells others how long it was needed.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, quantize_s: float | None) -> None:
        self._app, self._metrics, self._quantize_s = app, metrics, quantize_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived, status, error = monotonic(), 0, ""

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                await self._in_time(scope, arrived)
                held.close()
            await send(message)

        with ExitStack() as held:
            scope[HELD] = held
            try:
                await self._app(scope, receive, told)
            except Exception as bug:
                # Its message may hold inputs: its name is all that is told.
                error, scope[REFUSAL] = type(bug.__cause__ or bug).__name__, failed()
                if status == 0:
                    await body_of(scope[REFUSAL])(scope, receive, told)
        self._tell(scope, status, monotonic() - arrived, error)

    async def _in_time(self, scope: Scope, arrived: float) -> None:
        if self._quantize_s is None:
            return
        # A client that delays its body would choose the tick, and so read the time of the service.
        start = scope.get(READ, arrived)
        await until_next(start, self._quantize_s, clock=monotonic)

    def _tell(self, scope: Scope, status: int, seconds: float, error: str) -> None:
        route = getattr(scope.get("route"), "path", "other")
        refusal: Refused | None = scope.get(REFUSAL)
        self._metrics.finished(route, status, seconds)
        if refusal is not None:
            self._metrics.refused(refusal.reason)
        line: dict[str, Any] = {
            "time": round(time.time(), 3),
            "request": secrets.token_hex(8),
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
        }
        told: Mapping[str, str] = {"reason": refusal.reason if refusal else "", "error": error}
        _log.log(
            logging.ERROR if status >= 500 else logging.INFO,
            json.dumps(line | {name: word for name, word in told.items() if word}),
        )
