"""Units that were charged durably and are given out from memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from shieldnet.serving.budget import Budget
from shieldnet.serving.chain import account_id
from shieldnet.serving.units import NOTHING, Units


class Account(NamedTuple):
    """One subject's charges under one budget; None stands for all subjects together."""

    subject: str | None
    budget: Budget

    def start(self, now: int) -> int:
        """Returns when its current window began."""
        return self.budget.start(now)

    def id(self, now: int) -> str:
        """Names it in the store, in its current window."""
        return account_id(self.subject, self.budget.window, self.start(now))


class Taken(Enum):
    """What came of taking from leases: nothing, all, or all with little left for the next."""

    NOTHING = 0
    ALL = 1
    ALL_BUT_LOW = 2


class _Lease(NamedTuple):
    start: int
    unused: Units


class Leases:
    """Holds what this process may still give out, for each subject and window.

    A lease dies with its window. Time never goes back: the latest that was seen counts. Only so
    many clients are kept; those unseen for longest are dropped first, and returned. ``drops``
    counts how often some were.
    """

    def __init__(self, max_clients: int) -> None:
        self._max_clients = max_clients
        self._lock = threading.Lock()
        self._latest = 0
        self.drops = 0
        self._held: OrderedDict[str | None, dict[str, _Lease]] = OrderedDict()

    def now(self, clock: float) -> int:
        """Returns the time: the clock's, or the latest that was seen."""
        with self._lock:
            self._latest = max(self._latest, int(clock))
            return self._latest

    def take(self, accounts: Sequence[Account], need: Units, reserve: Units, now: int) -> Taken:
        """Takes the units from all accounts, or none; tells whether less than a reserve is left."""
        with self._lock:
            left = []
            for account in accounts:
                unused = self._unused(account, now)
                if not unused.covers(need):
                    return Taken.NOTHING
                left.append(unused.minus(need))
            for account, unused in zip(accounts, left, strict=True):
                self._set(account, unused, now)
            enough = all(unused.covers(reserve) for unused in left)
            return Taken.ALL if enough else Taken.ALL_BUT_LOW

    def take_up_to(self, account: Account, need: Units, now: int) -> Units:
        """Takes as much of the units as there is, and returns it."""
        with self._lock:
            unused = self._unused(account, now)
            part = unused.at_most(need)
            if part != NOTHING:
                self._set(account, unused.minus(part), now)
            return part

    def put(self, account: Account, units: Units, now: int) -> None:
        """Adds units of the window of a moment; those of a window that is over are dropped."""
        with self._lock:
            lease = self._held.get(account.subject, {}).get(account.budget.window)
            if lease is None or lease.start <= account.start(now):
                self._set(account, self._unused(account, now).plus(units), now)

    def unused(self, account: Account, now: int) -> Units:
        """Returns what is held of an account."""
        with self._lock:
            return self._unused(account, now)

    def dropped(self, budgets: Sequence[Budget], now: int) -> list[tuple[Account, Units]]:
        """Drops the leases of clients beyond the limit, and lists those that may be returned."""
        gone: list[tuple[Account, Units]] = []
        with self._lock:
            self.drops += len(self._held) > self._max_clients + 1
            while len(self._held) > self._max_clients + 1:  # one for all clients together
                subject = next(name for name in self._held if name is not None)
                self._list(subject, self._held.pop(subject), budgets, now, gone)
        return gone

    def drained(
        self, per_client: Sequence[Budget], in_all: Sequence[Budget], now: int
    ) -> list[tuple[Account, Units]]:
        """Drops all leases, and lists those that may be returned."""
        gone: list[tuple[Account, Units]] = []
        with self._lock:
            self.drops += 1
            for subject, leases in self._held.items():
                self._list(subject, leases, in_all if subject is None else per_client, now, gone)
            self._held.clear()
        return gone

    def _list(
        self,
        subject: str | None,
        leases: dict[str, _Lease],
        budgets: Sequence[Budget],
        now: int,
        gone: list[tuple[Account, Units]],
    ) -> None:
        for budget in budgets:
            lease = leases.get(budget.window)
            if lease and lease.start == budget.start(now) and lease.unused != NOTHING:
                gone.append((Account(subject, budget), lease.unused))

    def _unused(self, account: Account, now: int) -> Units:
        lease = self._held.get(account.subject, {}).get(account.budget.window)
        return NOTHING if lease is None or lease.start != account.start(now) else lease.unused

    def _set(self, account: Account, unused: Units, now: int) -> None:
        leases = self._held.setdefault(account.subject, {})
        leases[account.budget.window] = _Lease(account.start(now), unused)
        self._held.move_to_end(account.subject)
