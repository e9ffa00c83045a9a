"""The ledger: charges of every client, recorded before the answer exists, never over a budget."""

from __future__ import annotations

import atexit
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoResult
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from shieldnet.core.checks import flag, positive, whole
from shieldnet.core.errors import ConfigError, LedgerUnavailable
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.serving import forks
from shieldnet.serving.budget import Balance, Budget, as_budgets
from shieldnet.serving.chain import Checked, Seal, verify
from shieldnet.serving.leases import Account, Leases, Taken
from shieldnet.serving.looking import WAITS_S, Look
from shieldnet.serving.policy import Policy
from shieldnet.serving.secret import VARIABLE, key_of
from shieldnet.serving.settling import Ask, Settler
from shieldnet.serving.stores import open_store
from shieldnet.serving.stores.base import OneAtATime
from shieldnet.serving.stores.pages import Pages
from shieldnet.serving.units import NOTHING, Units, units_of
from shieldnet.serving.writer import Writer, closed

T = TypeVar("T")
_MAX_NAME = 1024
_SURROGATES = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Charge:
    """Says what was charged, durably, before the answer exists.

    rows: answers that were charged. units: of all of them together. repeated: the same request was
    charged before, and nothing was charged now. A context manager: the answer can be made in its
    block; nothing is refunded if the block fails, for the answer may have been computed.
    """

    rows: int
    units: Units
    repeated: bool = False

    def __enter__(self) -> Charge:
        return self

    def __exit__(self, *raised: object) -> None:
        return None


class Ledger:
    """Records what every client is charged, and refuses what a budget does not hold.

    url: ``"sqlite:///ledger.db"`` for the processes of one machine; ``"postgresql://..."`` or
        ``"redis://..."`` for several machines.
    per_client, in_all: budgets of each client and of all clients together, one or several
        (``Budget(bits=2000, window="day")``); by default nothing is limited, only recorded. They
        are part of the ledger: who opens it with others is refused, but with ``change=True``,
        which is recorded.
    key: 32 bytes that hash the names of clients and seal the records, or their 64 hexadecimal
        digits; by default those of the environment's ``SHIELDNET_LEDGER_KEY``, and for SQLite those
        of a file beside the ledger, ``ledger.db.key``, made at the first use.
    lease_rows: answers that are charged at once in a durable record and then given out from memory;
        a half is renewed before the rest is used up. More is faster; a crash loses those that were
        not given, never the charge of one that was.
    max_clients: whose leases are kept in memory; others return theirs.
    timeout_s: after which a charge that was not recorded is refused.
    clock: seconds since the epoch. One that goes back opens no window again.

    Clients are stored as keyed hashes; inputs and answers never. All methods may be called by
    several threads. A forked or unpickled copy has leases of its own.
    Guarantee: in each window and for each client, answers <= charged <= budget. What is charged and
    not answered is what leases held (``lease_rows`` answers a process and client at most, ten times
    as many for all clients together, and about as many as were charged before) when a process was
    killed, when a window ended, and when the store's acknowledgement was lost. It holds while the
    store keeps what it committed and its clock goes on.
    Errors: ConfigError; LedgerUnavailable if nothing can be written at the address.
    """

    def __init__(
        self,
        url: str,
        *,
        per_client: Budget | Sequence[Budget] | None = None,
        in_all: Budget | Sequence[Budget] | None = None,
        key: str | bytes | None = None,
        change: bool = False,
        lease_rows: int = 100,
        max_clients: int = 10_000,
        timeout_s: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.per_client = as_budgets("per_client", per_client)
        self.in_all = as_budgets("in_all", in_all)
        self.url, self.timeout_s, self.clock = url, positive("timeout_s", timeout_s), clock
        self.lease_rows = whole("lease_rows", lease_rows, low=1, high=10**6)
        self.max_clients = whole("max_clients", max_clients, low=1)
        self._key_was_given = key is not None
        self._connect()
        self._seal = Seal(key_of(key, url))
        self._start()
        try:
            with self._store.session() as session:
                self._policy.adopt(session, self._seal, change=flag("change", change))
        except BaseException:
            self._store.close()
            raise

    def _connect(self) -> None:
        """Makes the store, and one to look at beside it; their first sessions connect."""
        self._store = OneAtATime(open_store(self.url))
        self._reads = OneAtATime(open_store(self.url, read_only=True))

    def _stores(self) -> tuple[OneAtATime, ...]:
        return self._store, self._reads

    def _restart(self) -> None:
        self._connect()
        self._start()

    def _start(self) -> None:
        """Starts with nothing in memory: when made, when unpickled, and in a forked child."""
        self._policy = Policy(self.per_client, self.in_all)
        self._leases = Leases(self.max_clients)
        self._settler = Settler(
            self._store, self._seal, self._leases, self._policy, self.lease_rows
        )
        self._writer = Writer(self._settler)
        self._reader = Writer(self._settler)  # is handed in looks alone, so that no charge waits
        self._accounts: OrderedDict[str, tuple[Account, ...]] = OrderedDict()
        self._filling: set[str | None] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._pid = os.getpid()  # last: then other threads of a child may go on
        forks.remember(self)

    def _require_own_process(self) -> None:
        if self._pid != os.getpid():
            forks.restart_in_child(self)

    def charge(
        self,
        client: str,
        cost: PrivacyCost | Units,
        rows: int = 1,
        *,
        key: str | None = None,
        content: bytes | None = None,
    ) -> Charge:
        """Charges answers to a client, durably, before they are given.

        cost: of one answer. rows: answers. key: names a request: the same request of the same
        client is charged once within a day, also after a crash. content: what was asked under the
        key, of which a keyed hash is kept; the same key with other content is refused. Only give a
        key if the repeated answer is the same to the last bit: a fresh draw of noise is a new
        answer.
        Errors: nothing is charged by BudgetExceeded, and by ConfigError for no client, for a key
        without content, and for a key that was used for something else. By LedgerUnavailable it may
        have been: then a retry under the same key is not charged again.
        """
        if self._pid != os.getpid():  # not a call more: every charge comes by here
            forks.restart_in_child(self)
        accounts = self._accounts_of(client)
        each = cost if isinstance(cost, Units) else units_of(cost)
        if min(each) < 0:
            raise ConfigError(f"Expected a cost >= 0, got {each}.")
        count = whole("rows", rows, low=0)
        need = each.times(count)
        if count == 0:
            return Charge(0, NOTHING)
        if self._closed:
            raise closed()
        if key is None:
            now = self._leases.now(self.clock())
            taken = self._leases.take(accounts, need, each.times(self.lease_rows // 2), now)
            if taken is Taken.ALL_BUT_LOW:
                self._fill_up(Ask(accounts, each, 0, now))
            if taken is not Taken.NOTHING:
                return Charge(count, need)
            request = None
        else:
            if not isinstance(content, bytes):
                raise ConfigError(
                    "Expected content=, the bytes that were asked, beside key=: a key must not buy "
                    "the answer to another question."
                )
            subject = (accounts[0].subject or "").encode()
            name = self._seal.of("request", subject, _named("key", key).encode())
            what = repr((count, tuple(each))).encode()  # a key buys so many answers of that cost
            request = (name, self._seal.of("content", what, content))
        ask = Ask(accounts, each, count, self._leases.now(self.clock()), request)
        future = self._writer.ask(ask)
        try:
            repeated = future.result(self.timeout_s)
        except NoResult as late:
            if not future.cancel() and key is None:  # it is being recorded, and goes to the lease
                future.add_done_callback(lambda done: self._keep(ask, need, done))
            raise self._too_late() from late
        return Charge(0, NOTHING, repeated=True) if repeated else Charge(count, need)

    def _keep(self, ask: Ask, need: Units, done: Future[bool]) -> None:
        """Keeps for other answers what was charged too late for its own."""
        if not done.cancelled() and done.exception() is None:
            for account in ask.accounts:
                self._leases.put(account, need, ask.now)

    def _fill_up(self, ask: Ask) -> None:
        """Asks for new leases before the old ones are used up, so that no answer waits for them."""
        subject = ask.accounts[0].subject
        with self._lock:
            if subject in self._filling:
                return
            self._filling.add(subject)
        with suppress(LedgerUnavailable):  # the answer has its charge; the next may be refused
            self._writer.ask(ask).add_done_callback(lambda _: self._filling.discard(subject))

    def _accounts_of(self, client: str) -> tuple[Account, ...]:
        """Returns the accounts that a client's answers are charged to; all clients' come last."""
        name = _named("client", client)
        with self._lock:
            accounts = self._accounts.get(name)
            if accounts is None:
                subject = self._seal.subject(name)
                mine = (Account(subject, budget) for budget in self.per_client)
                accounts = (*mine, *(Account(None, budget) for budget in self.in_all))
                self._accounts[name] = accounts
                if len(self._accounts) > self.max_clients:
                    self._accounts.popitem(last=False)
            return accounts

    def left(self, client: str | None = None) -> tuple[Balance, ...]:
        """Returns what is left of each budget in its current window; of all clients for None.

        What other servers hold as leases counts as spent, and for a moment what is being leased.
        No charge waits for it.
        Errors: LedgerUnavailable.
        """
        self._require_own_process()
        if client is None:
            accounts = tuple(Account(None, budget) for budget in self.in_all)
        else:
            accounts = tuple(part for part in self._accounts_of(client) if part.subject)
        if self._closed:
            raise closed()
        look = Look(self._reads, self._settler, self._leases, self.clock)
        for wait_s in WAITS_S:
            found = self._within(self._reader, lambda: look(accounts))
            if found.is_exact:
                break
            time.sleep(wait_s)
        return found.balances

    def require_writable(self) -> None:
        """Refuses a ledger that could not record a charge now. Errors: LedgerUnavailable."""
        self._require_own_process()
        self._within(self._writer, self._begin)

    def _begin(self) -> None:
        with self._store.session() as session:
            self._settler.checked(session.head(), self._settler.last_number)

    def verify(self, heads: Sequence[str] = ()) -> Checked:
        """Reads the whole ledger and raises VerificationFailed if it was changed.

        In pages: answers are charged meanwhile, here and by other servers.
        """
        self._require_own_process()
        return verify(Pages(self._store, self._writer.run), self._seal, heads)

    def _within(self, thread: Writer, job: Callable[[], T]) -> T:
        try:
            return thread.run(job, self.timeout_s)
        except NoResult as late:
            raise self._too_late() from late

    def _too_late(self) -> LedgerUnavailable:
        return LedgerUnavailable(
            f"The ledger did not answer within {self.timeout_s:g} s. No answer is given without a "
            "charge."
        )

    def close(self) -> None:
        """Returns what leases did not use, and closes the store. Charges are refused from then on.

        Errors: LedgerUnavailable if they cannot be returned; they stay charged then.
        """
        self._require_own_process()
        with self._lock:
            was_closed, self._closed = self._closed, True
        if was_closed:
            return
        with suppress(NoResult):  # it has nothing to return
            self._reader.close(self._reads.close, self.timeout_s)
        try:
            self._writer.close(lambda: self._settler.give_all_back(self.clock()), self.timeout_s)
        except NoResult as late:  # its thread still holds the connection
            raise self._too_late() from late
        except BaseException:
            self._store.close()
            raise
        self._store.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Returns what another process needs: no lease, and never the key."""
        if self._key_was_given:
            raise ConfigError(
                "A ledger whose key was given as an argument cannot be pickled, for the key would "
                f"be, too. Set {VARIABLE} in every process instead."
            )
        names = ("per_client", "in_all", "url", "timeout_s", "clock", "lease_rows", "max_clients")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        url = state.pop("url")
        Ledger.__init__(self, url, **state)


def _named(what: str, name: object) -> str:
    """Refuses a name that is none."""
    if isinstance(name, str) and 0 < len(name) <= _MAX_NAME and not _SURROGATES.search(name):
        return name
    raise ConfigError(
        f"Expected {what} as 1 to {_MAX_NAME} characters, got {type(name).__name__}"
        f"{' of ' + str(len(name)) if isinstance(name, str) else ''}: every charge has a client."
    )


def _at_exit() -> None:
    """Returns what leases hold where a program ends without closing its ledgers."""
    for ledger in forks.all_open():
        with suppress(LedgerUnavailable, ConfigError):
            ledger.close()


atexit.register(_at_exit)
