"""Charges in one SQLite file, for the processes of one machine."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from shieldnet.core.errors import ConfigError
from shieldnet.serving.stores.base import (
    KEPT_S,
    Entry,
    Head,
    NoLedger,
    Record,
    State,
    unavailable,
)
from shieldnet.serving.units import Units

_TABLES = """
CREATE TABLE IF NOT EXISTS head (one INTEGER PRIMARY KEY CHECK (one = 1),
    number INTEGER NOT NULL, mac TEXT NOT NULL, time INTEGER NOT NULL, policy TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS records (number INTEGER PRIMARY KEY, body TEXT NOT NULL,
    mac TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS totals (id TEXT PRIMARY KEY, bits INTEGER NOT NULL,
    rho INTEGER NOT NULL, queries INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (id TEXT PRIMARY KEY, content TEXT NOT NULL,
    time INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_time ON requests (time);
"""
_FOUND = """
SELECT count(*) FROM sqlite_master WHERE type = 'table'
    AND name IN ('head', 'records', 'totals', 'requests')
"""
_COUNT = 4
_WAIT_S = 5.0
# The oldest version with both UPSERT and WITHOUT ROWID as they are used here.
_OLDEST = (3, 24)


class SqliteStore:
    """Keeps charges in a file: ``sqlite:///ledger.db``, or ``sqlite:////var/lib/ledger.db``.

    A write-ahead log with synchronous=FULL: what was appended survives a power failure. The file
    must be on a local disk: the log needs memory that processes share.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        self.url, self._read_only = url, read_only
        self.path = url.removeprefix("sqlite:///")
        if not self.path or self.path == url or self.path.startswith(":"):
            raise ConfigError(
                f"Expected a file, as in sqlite:///ledger.db, got {url!r}: what a process keeps in "
                "memory alone is forgotten, and every budget with it."
            )
        if sqlite3.sqlite_version_info < _OLDEST:
            raise ConfigError(f"Expected SQLite 3.24 or newer, got {sqlite3.sqlite_version}.")
        self._connection: sqlite3.Connection | None = None
        self._file = -1

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            address = (
                f"{Path(self.path).absolute().as_uri()}?mode={'ro' if self._read_only else 'rwc'}"
            )
            connection = sqlite3.connect(
                address, timeout=_WAIT_S, isolation_level=None, check_same_thread=False, uri=True
            )
            try:
                if not self._read_only:
                    _prepare(connection)
                self._connection, self._file = connection, os.stat(self.path).st_ino
            except (sqlite3.Error, OSError):
                connection.close()
                raise
        return self._connection

    @contextmanager
    def session(self) -> Iterator[SqliteSession]:
        """Opens a session. Other writers wait up to five seconds for its end."""
        with self._within("BEGIN IMMEDIATE") as connection:
            yield SqliteSession(connection)

    @contextmanager
    def reading(self) -> Iterator[SqliteSession | NoLedger]:
        """Opens a session that appends nothing, for which no writer waits."""
        with self._within("BEGIN DEFERRED") as connection:
            found = connection.execute(_FOUND).fetchone()[0] == _COUNT
            yield SqliteSession(connection) if found else NoLedger()

    @contextmanager
    def _within(self, begin: str) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._connected()
            connection.execute(begin)
            try:
                self._require_file()
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as failed:
            raise unavailable(self.url, failed) from failed

    def _require_file(self) -> None:
        """Refuses a file that was removed or replaced: what is written to it is lost."""
        try:
            found = os.stat(self.path).st_ino
        except OSError:
            found = -1
        if found != self._file:
            raise sqlite3.OperationalError("its file was removed or replaced while it was open")

    def close(self) -> None:
        """Closes the connection; the next session opens another."""
        connection, self._connection = self._connection, None  # also where closing it fails
        if connection is not None:
            connection.close()


class SqliteSession:
    """A transaction, which holds the write lock from its beginning or never."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def head(self) -> Head | None:
        """Returns the end of the chain; None for a store that is empty."""
        row = self._connection.execute("SELECT number, mac, time, policy FROM head").fetchone()
        return None if row is None else Head(*row)

    def totals(self, ids: Sequence[str]) -> Mapping[str, Units]:
        """Returns what was charged to these accounts."""
        query = f"SELECT id, bits, rho, queries FROM totals WHERE id IN ({_places(ids)})"  # noqa: S608
        return {name: Units(*counts) for name, *counts in self._connection.execute(query, ids)}

    def requests(self, ids: Sequence[str], since: int) -> Mapping[str, str]:
        """Returns the content of each of these requests that was recorded since then."""
        query = f"SELECT id, content FROM requests WHERE id IN ({_places(ids)}) AND time >= ?"  # noqa: S608
        return dict(self._connection.execute(query, (*ids, since)).fetchall())

    def state(self) -> State:
        """Returns all that is kept but the records."""
        run = self._connection.execute
        totals = run("SELECT id, bits, rho, queries FROM totals")
        return State(
            self.head() or Head(),
            {name: Units(*counts) for name, *counts in totals},
            {
                name: (content, time)
                for name, content, time in run("SELECT id, content, time FROM requests")
            },
        )

    def records(self, after: int, most: int) -> list[Record]:
        """Returns so many of the records with larger numbers, in their order."""
        rows = self._connection.execute(
            "SELECT number, body, mac FROM records WHERE number > ? ORDER BY number LIMIT ?",
            (after, most),
        )
        return [Record(*row) for row in rows]

    def append(self, entry: Entry, after: Head | None) -> bool:
        """Appends all of the entry if ``after`` is still the end of the chain, or nothing."""
        run, run_each = self._connection.execute, self._connection.executemany
        if after is None:
            changed = run("INSERT OR IGNORE INTO head VALUES (1, ?, ?, ?, ?)", entry.head)
        else:
            changed = run(
                "UPDATE head SET number = ?, mac = ?, time = ?, policy = ? "
                "WHERE number = ? AND mac = ?",
                (*entry.head, after.number, after.mac),
            )
        if changed.rowcount != 1:
            return False
        run_each("INSERT INTO records VALUES (?, ?, ?)", entry.records)
        run_each(
            "INSERT INTO totals VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
            "bits = excluded.bits, rho = excluded.rho, queries = excluded.queries",
            [(name, *units) for name, units in entry.totals.items()],
        )
        if entry.requests:
            run("DELETE FROM requests WHERE time < ?", (entry.head.time - KEPT_S,))
            run_each("INSERT OR REPLACE INTO requests VALUES (?, ?, ?)", entry.requests)
        return True


def _prepare(connection: sqlite3.Connection) -> None:
    """Makes a file that keeps what it acknowledged, with the tables of a ledger."""
    if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
        raise sqlite3.OperationalError("its file system has no write-ahead log")
    connection.execute("PRAGMA synchronous=FULL")
    connection.executescript(_TABLES)


def _places(ids: Sequence[str]) -> str:
    return ", ".join("?" * len(ids))
