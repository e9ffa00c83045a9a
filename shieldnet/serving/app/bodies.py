"""Bodies of requests and refusals."""

import asyncio
from time import monotonic

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from shieldnet.serving.app import refusals
from shieldnet.serving.app.limits import Limits
from shieldnet.serving.app.refusals import Refused

READ = "shieldnet.read"
"""Where the scope of a request holds the time at which the last byte of its body was read."""


def body_of(refused: Refused) -> JSONResponse:
    """Returns what the client gets in place of an answer."""
    return JSONResponse({"error": refused.message}, refused.status, dict(refused.headers))


def require_type(request: Request, *types: str) -> None:
    """Refuses a body in another form than JSON, or bytes behind it. Errors: Refused (415)."""
    given = request.headers.get("content-type", types[0]).partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if given not in types or encoding != "identity":
        raise refusals.other_type(" or ".join(types))


async def read_body(request: Request, limits: Limits) -> bytes:
    """Returns the body, of which no more than the limit is ever held.

    Errors: Refused with 413 for a body above the limit, 408 for one that does not come in time.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > limits.max_body_bytes):
        raise refusals.too_large()
    try:
        body = await asyncio.wait_for(_received(request, limits.max_body_bytes), limits.timeout_s)
    except asyncio.TimeoutError:
        raise refusals.too_slow() from None
    except ClientDisconnect:
        raise refusals.malformed("The request ended early.") from None
    request.scope[READ] = monotonic()
    return body


async def _received(request: Request, most: int) -> bytes:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise refusals.too_large()
        return bytes(body)
    finally:
        body.clear()  # the frame of what was raised here may live on
