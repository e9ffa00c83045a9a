"""What a request is refused with: a status, and a body that depends on no answer."""

import time
from collections.abc import Mapping
from types import MappingProxyType

_NONE: Mapping[str, str] = MappingProxyType({})


class Refused(Exception):
    """Ends a request without an answer.

    reason: one word, for counters and logs. message: the whole body; it is made of what the caller
    sent in form (names, shapes, types) and of what the model's metadata say, never of numbers that
    came in, of an answer or of an error of the model.
    """

    def __init__(
        self, status: int, reason: str, message: str, headers: Mapping[str, str] = _NONE
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.headers = status, reason, message, headers


def malformed(message: str) -> Refused:
    """Returns the refusal of a request that is not as the protocol and the model want it."""
    return Refused(400, "malformed", message)


def unknown_key() -> Refused:
    """Returns the refusal of a caller without a key, or with one that is not known."""
    words = "Give a known API key: Authorization: Bearer KEY, or X-API-Key: KEY."
    return Refused(401, "key", words, {"WWW-Authenticate": "Bearer"})


def not_found() -> Refused:
    """Returns the refusal of an address that leads nowhere."""
    return Refused(404, "address", "Not found.")


def too_slow() -> Refused:
    """Returns the refusal of a request whose body does not come."""
    return Refused(408, "slow", "The request took too long to arrive.", {"Connection": "close"})


def too_large() -> Refused:
    """Returns the refusal of a body above the limit, which is not read to its end."""
    return Refused(413, "size", "The request is too large.", {"Connection": "close"})


def other_type(expected: str) -> Refused:
    """Returns the refusal of a body in a form that the route does not read."""
    return Refused(415, "type", f"Expected {expected}, without Content-Encoding.")


def unanswerable() -> Refused:
    """Returns the refusal of inputs whose answer may not be released; they stay charged."""
    words = "There is no answer to these inputs that may be released. The request was charged."
    return Refused(422, "answer", words)


def key_reused() -> Refused:
    """Returns the refusal of an Idempotency-Key that named another request before."""
    words = "This Idempotency-Key was used for another request. Nothing was charged."
    return Refused(422, "reused", words)


def spent(retry_after_s: int | None) -> Refused:
    """Returns the refusal of a client whose budget does not cover the request.

    retry_after_s: until the budget renews; None where it never does.
    """
    words = "The budget does not cover this request. Nothing was charged."
    headers = {} if retry_after_s is None else {"Retry-After": str(max(1, retry_after_s))}
    return Refused(429, "budget", words, headers)


def watched(until: int) -> Refused:
    """Returns the refusal of a client whose queries look like an extraction.

    until: when that ends, in seconds since the epoch.
    """
    words = "The queries of this client are refused for a time. Nothing was charged."
    wait_s = max(1, until - int(time.time()))
    return Refused(429, "queries", words, {"Retry-After": str(wait_s)})


def failed() -> Refused:
    """Returns the refusal of a request that failed within the server."""
    return Refused(500, "internal", "The server failed. What was charged stays charged.")


def no_ledger() -> Refused:
    """Returns the refusal of a request that could not be charged."""
    return Refused(503, "ledger", "The request could not be charged, so there is no answer.")


def unsure() -> Refused:
    """Returns the refusal of a request whose charge the ledger did not confirm in time."""
    words = "The charge was not confirmed in time, so there is no answer. It may have been charged."
    return Refused(503, "ledger", words)


def busy() -> Refused:
    """Returns the refusal of a request that came while too many others were served.

    They are those of all clients, of the same client, or one with the same Idempotency-Key.
    """
    words = "Too many requests are being served. Nothing was charged."
    return Refused(503, "busy", words, {"Retry-After": "1"})


def late() -> Refused:
    """Returns the refusal of a request whose answer takes too long."""
    return Refused(503, "late", "The answer took too long. What was charged stays charged.")
