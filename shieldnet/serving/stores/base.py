"""What a store of charges does: it appends records, atomically, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from shieldnet.core.errors import LedgerUnavailable
from shieldnet.serving.units import Units


class Head(NamedTuple):
    """The end of the chain of records: all that a writer must know to append.

    number: of the last record. mac: of the last record. time: the latest that was ever recorded.
    policy: what the ledger was opened with, as JSON.
    """

    number: int = 0
    mac: str = ""
    time: int = 0
    policy: str = ""


class Record(NamedTuple):
    """One line of the chain. body: canonical JSON. mac: keyed hash of the body and the last mac."""

    number: int
    body: str
    mac: str


class Request(NamedTuple):
    """An idempotency key: that of one subject, with the keyed hash of what was asked under it."""

    id: str
    content: str
    time: int


@dataclass
class Entry:
    """What is appended at once. totals: new, of each account that changed, by its id."""

    head: Head
    records: list[Record] = field(default_factory=list)
    totals: dict[str, Units] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)


class Contents(NamedTuple):
    """All of a ledger: its chain in order, what each account was charged, what requests said."""

    records: Sequence[Record]
    totals: Mapping[str, Units]
    requests: Mapping[str, str]


class Session(Protocol):
    """A look at the store, and one attempt to append to it."""

    def head(self) -> Head | None:
        """Returns the end of the chain; None for a store that is empty."""

    def totals(self, ids: Sequence[str]) -> Mapping[str, Units]:
        """Returns what was charged to these accounts; an account that is not there has nothing."""

    def requests(self, ids: Sequence[str], since: int) -> Mapping[str, str]:
        """Returns the content of each of these requests that was recorded since then."""

    def everything(self) -> Contents:
        """Returns all that is kept, as of one moment."""

    def append(self, entry: Entry, after: Head | None) -> bool:
        """Appends all of the entry if ``after`` is still the end of the chain, or nothing.

        Durable when the session ends without an error.
        """


class Store(Protocol):
    """Where charges are kept. Errors of all methods: LedgerUnavailable."""

    url: str

    def session(self) -> AbstractContextManager[Session]:
        """Opens a session; other writers wait, or fail to append."""

    def forget(self) -> None:
        """Drops the connection without touching it, as a forked child must."""

    def close(self) -> None:
        """Closes the connection."""


KEPT_S = 86400
"""How long the idempotency key of a request is kept, in seconds."""


def unavailable(url: str, why: object) -> LedgerUnavailable:
    """Says that a charge could not be recorded, never with a secret of the address."""
    return LedgerUnavailable(
        f"The ledger {without_secrets(url)} cannot be reached or written: {why}. No answer is "
        "given without a charge."
    )


def without_secrets(url: str) -> str:
    """Returns an address without its user name and password."""
    scheme, found, rest = url.partition("://")
    return f"{scheme}{found}{rest.rpartition('@')[2]}"
