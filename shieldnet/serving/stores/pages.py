"""A store that is read page by page, so that no writer waits for all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shieldnet.serving.stores.base import Head, Record, State, Store

_PAGE = 2000  # records; about half a megabyte


class Pages:
    """Reads a ledger piece by piece.

    run: how a piece is read: by a thread of its own, perhaps.
    """

    def __init__(
        self, store: Store, run: Callable[[Callable[[], Any]], Any] = lambda read: read()
    ) -> None:
        self._store, self._run = store, run

    def state(self) -> State:
        """Returns all that is kept but the records, as of one moment."""
        state: State = self._run(self._state)
        return state

    def page(self, after: int) -> tuple[Head, list[Record]]:
        """Returns the end of the chain and the next records after a number; none at the end."""
        page: tuple[Head, list[Record]] = self._run(lambda: self._page(after))
        return page

    def _state(self) -> State:
        with self._store.reading() as session:
            return session.state()

    def _page(self, after: int) -> tuple[Head, list[Record]]:
        with self._store.reading() as session:
            return session.head() or Head(), session.records(after, _PAGE)
