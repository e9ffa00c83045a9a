"""Ledgers in a process that forks: no connection and no lease may live in two processes."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

from shieldnet.serving.stores.base import OneAtATime


class Forked(Protocol):
    """What a fork stops, and what starts anew in the child."""

    _closed: bool
    _pid: int

    def close(self) -> None:
        """Returns what leases did not use."""

    def _stores(self) -> Sequence[OneAtATime]:
        """Returns the stores that it may be connected to."""

    def _restart(self) -> None:
        """Starts with other stores, and with nothing in memory."""


def remember(ledger: Forked) -> None:
    """Has every fork from now on stop a ledger, which is forgotten when nothing else holds it."""
    with _one_fork:
        _open.add(ledger)


def all_open() -> list[Forked]:
    """Returns all ledgers that are not forgotten."""
    with _one_fork:
        return list(_open)


def restart_in_child(ledger: Forked) -> None:
    """Starts a ledger anew that another process started, once for all threads.

    For a process that forked where Python did not see it, as servers written in C do.
    """
    with _one_fork:
        if ledger._pid != os.getpid() and not ledger._closed:
            _start_anew(ledger)


def _start_anew(ledger: Forked) -> None:
    # Never closed here, not by garbage collection either: the connections are the parent's.
    _inherited.extend(ledger._stores())
    ledger._restart()


def _before_fork() -> None:
    """Waits for other forks and for running sessions, and closes connections.

    SQLite's locks belong to a process, and a connection that a child inherits would hold none.
    """
    turns: list[Any] = []  # locks, which the same thread releases after the fork
    _held.turns = turns
    _one_fork.acquire()
    turns.append(_one_fork)
    failed: list[Exception] = []
    for ledger in list(_open):
        for store in () if ledger._closed else ledger._stores():
            store.turn.acquire()
            turns.append(store.turn)
            try:
                store.close()
            except Exception as error:  # the others have their turn first
                failed.append(error)
    if failed:
        raise failed[0]  # Python tells it, and forks


def _after_fork() -> None:
    """Goes on in the parent; the next session connects again."""
    turns = _held.turns
    while turns:
        turns.pop().release()


def _after_fork_in_child() -> None:
    """Forgets leases in a forked child: its parent gives the same out."""
    global _one_fork
    _one_fork, _held.turns = threading.RLock(), []
    for ledger in list(_open):
        if ledger._closed:
            _inherited.extend(ledger._stores())
        else:
            _start_anew(ledger)


_open: weakref.WeakSet[Forked] = weakref.WeakSet()
_inherited: list[OneAtATime] = []
# Held from before a fork until after it: two threads that fork at once take turns.
_one_fork = threading.RLock()
_held = threading.local()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork,
        after_in_child=_after_fork_in_child,
    )
