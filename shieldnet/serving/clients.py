"""Who asks: a name that is passed on within one process, beside the call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_client: ContextVar[str | None] = ContextVar("shieldnet_client", default=None)


@contextmanager
def client(name: str) -> Iterator[None]:
    """Says who asks in this block, for every guard that is called inside, in threads and tasks too.

    For code between a server and its guard that knows no client: ``with sn.serving.client(user):``.
    """
    token = _client.set(name)
    try:
        yield
    finally:
        _client.reset(token)


def current_client() -> str | None:
    """Returns who asks; None outside of every ``client`` block."""
    return _client.get()
