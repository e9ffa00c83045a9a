"""Charges in a PostgreSQL database, for the servers of several machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from shieldnet.core.checks import optional
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
CREATE TABLE IF NOT EXISTS shieldnet_head (one INTEGER PRIMARY KEY CHECK (one = 1),
    number BIGINT NOT NULL, mac TEXT NOT NULL, time BIGINT NOT NULL, policy TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS shieldnet_records (number BIGINT PRIMARY KEY, body TEXT NOT NULL,
    mac TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS shieldnet_totals (id TEXT PRIMARY KEY, bits BIGINT NOT NULL,
    rho BIGINT NOT NULL, queries BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS shieldnet_requests (id TEXT PRIMARY KEY, content TEXT NOT NULL,
    time BIGINT NOT NULL);
CREATE INDEX IF NOT EXISTS shieldnet_requests_time ON shieldnet_requests (time);
"""
_FOUND = """
SELECT to_regclass('shieldnet_head') IS NOT NULL AND to_regclass('shieldnet_records') IS NOT NULL
    AND to_regclass('shieldnet_totals') IS NOT NULL
    AND to_regclass('shieldnet_requests') IS NOT NULL
"""
_WAIT_S = 5
# Names the lock that writers of a ledger hold; a number that no other program uses.
_LOCK = 7_135_044_627_511_220_117


class PostgresStore:
    """Keeps charges in four tables: ``postgresql://user@host/database``.

    Each session holds one advisory lock, so that writers take turns; commits are synchronous. A
    server that fails over to a replica must replicate synchronously, or it forgets charges.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        self.url, self._read_only = url, read_only
        self._psycopg: Any = optional("psycopg", extra="postgres")
        self._connection: Any = None

    def _connected(self) -> Any:
        if self._connection is None or self._connection.closed:
            self._connection = self._psycopg.connect(
                self.url, autocommit=True, connect_timeout=_WAIT_S
            )
            if self._connection.execute("SHOW fsync").fetchone()[0] != "on":
                self.close()
                raise ConfigError(
                    "Expected a PostgreSQL server with fsync on, got off: it may forget charges."
                )
            # A server that hangs in a session must not stop all others.
            wait = f"SET idle_in_transaction_session_timeout = '{_WAIT_S}s'"
            self._connection.execute(wait)
            if self._read_only:
                self._connection.execute("SET default_transaction_read_only = on")
            else:
                with self._connection.transaction():
                    self._lock()
                    self._connection.execute(_TABLES)
        return self._connection

    def _lock(self) -> None:
        self._connection.execute(f"SET LOCAL lock_timeout = '{_WAIT_S}s'")
        self._connection.execute("SET LOCAL synchronous_commit = on")
        self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))

    @contextmanager
    def session(self) -> Iterator[PostgresSession]:
        """Opens a session. Other writers wait up to five seconds for its end."""
        with self._within(self._lock) as connection:
            yield PostgresSession(connection)

    @contextmanager
    def reading(self) -> Iterator[PostgresSession | NoLedger]:
        """Opens a session that appends nothing, for which no writer waits."""
        with self._within(self._see_one_moment) as connection:
            found = connection.execute(_FOUND).fetchone()[0]
            yield PostgresSession(connection) if found else NoLedger()

    def _see_one_moment(self) -> None:
        self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    @contextmanager
    def _within(self, begin: Callable[[], None]) -> Iterator[Any]:
        try:
            connection = self._connected()
            with connection.transaction():
                begin()
                yield connection
        except self._psycopg.Error as failed:
            self.close()  # the next session connects again
            raise unavailable(self.url, type(failed).__name__) from failed

    def close(self) -> None:
        """Closes the connection; the next session opens another."""
        connection, self._connection = self._connection, None  # also where closing it fails
        if connection is not None:
            connection.close()


class PostgresSession:
    """A transaction, which holds the ledger's lock from its beginning or never."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def head(self) -> Head | None:
        """Returns the end of the chain; None for a store that is empty."""
        row = self._connection.execute(
            "SELECT number, mac, time, policy FROM shieldnet_head"
        ).fetchone()
        return None if row is None else Head(*row)

    def totals(self, ids: Sequence[str]) -> Mapping[str, Units]:
        """Returns what was charged to these accounts."""
        rows = self._connection.execute(
            "SELECT id, bits, rho, queries FROM shieldnet_totals WHERE id = ANY(%s)", (list(ids),)
        )
        return {name: Units(*counts) for name, *counts in rows}

    def requests(self, ids: Sequence[str], since: int) -> Mapping[str, str]:
        """Returns the content of each of these requests that was recorded since then."""
        rows = self._connection.execute(
            "SELECT id, content FROM shieldnet_requests WHERE id = ANY(%s) AND time >= %s",
            (list(ids), since),
        )
        return dict(rows.fetchall())

    def state(self) -> State:
        """Returns all that is kept but the records."""
        run = self._connection.execute
        totals = run("SELECT id, bits, rho, queries FROM shieldnet_totals")
        return State(
            self.head() or Head(),
            {name: Units(*counts) for name, *counts in totals},
            {
                name: (content, time)
                for name, content, time in run("SELECT id, content, time FROM shieldnet_requests")
            },
        )

    def records(self, after: int, most: int) -> list[Record]:
        """Returns so many of the records with larger numbers, in their order."""
        rows = self._connection.execute(
            "SELECT number, body, mac FROM shieldnet_records WHERE number > %s "
            "ORDER BY number LIMIT %s",
            (after, most),
        )
        return [Record(*row) for row in rows]

    def append(self, entry: Entry, after: Head | None) -> bool:
        """Appends all of the entry if ``after`` is still the end of the chain, or nothing."""
        run, cursor = self._connection.execute, self._connection.cursor()
        if after is None:
            changed = run(
                "INSERT INTO shieldnet_head VALUES (1, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                entry.head,
            )
        else:
            changed = run(
                "UPDATE shieldnet_head SET number = %s, mac = %s, time = %s, policy = %s "
                "WHERE number = %s AND mac = %s",
                (*entry.head, after.number, after.mac),
            )
        if changed.rowcount != 1:
            return False
        cursor.executemany("INSERT INTO shieldnet_records VALUES (%s, %s, %s)", entry.records)
        cursor.executemany(
            "INSERT INTO shieldnet_totals VALUES (%s, %s, %s, %s) ON CONFLICT (id) DO UPDATE SET "
            "bits = excluded.bits, rho = excluded.rho, queries = excluded.queries",
            [(name, *units) for name, units in entry.totals.items()],
        )
        if entry.requests:
            run("DELETE FROM shieldnet_requests WHERE time < %s", (entry.head.time - KEPT_S,))
            cursor.executemany(
                "INSERT INTO shieldnet_requests VALUES (%s, %s, %s) ON CONFLICT (id) DO UPDATE SET "
                "content = excluded.content, time = excluded.time",
                entry.requests,
            )
        return True
