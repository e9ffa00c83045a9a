"""What a store of charges does: it appends records, atomically, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
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


class State(NamedTuple):
    """What a ledger holds as of one moment, but for the chain that led to it.

    totals: of each account. requests: content and time of each.
    """

    head: Head
    totals: Mapping[str, Units]
    requests: Mapping[str, tuple[str, int]]


class Session(Protocol):
    """A look at the store, and one attempt to append to it."""

    def head(self) -> Head | None:
        """Returns the end of the chain; None for a store that is empty."""

    def totals(self, ids: Sequence[str]) -> Mapping[str, Units]:
        """Returns what was charged to these accounts; an account that is not there has nothing."""

    def requests(self, ids: Sequence[str], since: int) -> Mapping[str, str]:
        """Returns the content of each of these requests that was recorded since then."""

    def state(self) -> State:
        """Returns all that is kept but the records."""

    def records(self, after: int, most: int) -> list[Record]:
        """Returns so many of the records with larger numbers, in their order."""

    def append(self, entry: Entry, after: Head | None) -> bool:
        """Appends all of the entry if ``after`` is still the end of the chain, or nothing.

        Durable when the session ends without an error.
        """


class Store(Protocol):
    """Where charges are kept. Errors of all methods: LedgerUnavailable."""

    url: str

    def session(self) -> AbstractContextManager[Session]:
        """Opens a session; other writers wait, or fail to append."""

    def reading(self) -> AbstractContextManager[Session]:
        """Opens a session that sees one moment, appends nothing, and lets others write."""

    def close(self) -> None:
        """Closes the connection; the next session opens another."""


class NoLedger:
    """A look at a place where there is no ledger."""

    def head(self) -> Head | None:
        """Returns None."""
        return None

    def totals(self, ids: Sequence[str]) -> Mapping[str, Units]:
        """Returns no account."""
        return {}

    def requests(self, ids: Sequence[str], since: int) -> Mapping[str, str]:
        """Returns no request."""
        return {}

    def state(self) -> State:
        """Returns what an empty ledger holds."""
        return State(Head(), {}, {})

    def records(self, after: int, most: int) -> list[Record]:
        """Returns no record."""
        return []

    def append(self, entry: Entry, after: Head | None) -> bool:
        """Appends nothing."""
        return False


class OneAtATime:
    """A store whose sessions take turns within a process, and stop while it forks."""

    def __init__(self, store: Store) -> None:
        self.url, self._store = store.url, store
        self.turn = threading.Lock()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Opens a session; other threads wait for its end."""
        with self.turn, self._store.session() as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Opens a session that appends nothing; other threads wait for its end, no process does."""
        with self.turn, self._store.reading() as session:
            yield session

    def close(self) -> None:
        """Closes the connection; the next session opens another."""
        self._store.close()


KEPT_S = 86400
"""How long the idempotency key of a request is kept, in seconds."""


def unavailable(url: str, why: object) -> LedgerUnavailable:
    """Says that a charge could not be recorded, never with a secret of the address."""
    return LedgerUnavailable(
        f"The ledger {without_secrets(url)} cannot be reached or written: {why}. No answer is "
        "given without a charge."
    )


def without_secrets(url: str) -> str:
    """Returns an address without its user name, password and options."""
    scheme, found, rest = str(url).partition("://")
    return f"{scheme}{found}{rest.partition('?')[0].rpartition('@')[2]}"
