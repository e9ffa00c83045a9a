"""Decides a group of charges in one transaction of the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import NamedTuple

from shieldnet.core.errors import BudgetExceeded, ConfigError, LedgerUnavailable, ShieldnetError
from shieldnet.privacy.certificate import counted
from shieldnet.serving.budget import per, said
from shieldnet.serving.chain import Draft, Seal
from shieldnet.serving.leases import Account, Leases
from shieldnet.serving.policy import Policy
from shieldnet.serving.stores.base import KEPT_S, Head, Request, Session, Store
from shieldnet.serving.units import INFINITE, NOTHING, Units

_ATTEMPTS = 100
# A lease is at most this part of what is left: other servers want some, too.
_SHARE = 4
# All clients together use up a lease as fast as all of theirs.
_OF_ALL = 10

Dropped = Callable[[int], list[tuple[Account, Units]]]
"""Drops leases as of a moment, and lists those that may be returned."""
Outcome = bool | ShieldnetError
"""Whether a request was charged before (then nothing is charged now), or why it is refused."""


class Ask(NamedTuple):
    """One charge. each: of one answer. rows: 0 only fills up the leases.

    request: an idempotency key and its content, both hashed.
    """

    accounts: tuple[Account, ...]
    each: Units
    rows: int
    now: int
    request: tuple[str, str] | None = None


class _Part(NamedTuple):
    """What leases gave, in the window of a moment. request: whether it was for one with a key."""

    account: Account
    units: Units
    now: int
    request: bool = False


@dataclass
class _Attempt:
    """What one attempt took out of memory.

    dropped: what it returns to the store. may_be_written: the store was asked to append.
    """

    taken: list[_Part] = field(default_factory=list)
    dropped: list[_Part] = field(default_factory=list)
    may_be_written: bool = False


@dataclass
class _Group:
    """What a group of charges changes; in memory only once the store has it."""

    head: Head
    now: int
    draft: Draft
    known: dict[str, str]
    attempt: _Attempt
    fresh: dict[Account, Units] = field(default_factory=dict)


class Settler:
    """Settles charges against leases in memory and budgets in the store."""

    def __init__(
        self, store: Store, seal: Seal, leases: Leases, policy: Policy, lease_rows: int
    ) -> None:
        self._store, self._seal, self._leases = store, seal, leases
        self._policy, self._lease_rows = policy, lease_rows
        self._written = policy.written(seal)
        self.last_number = 0  # of the records that this process knows
        self.changing: frozenset[str | None] = frozenset()  # subjects of the group in work

    def settle(self, asks: Sequence[Ask]) -> list[Outcome]:
        """Decides all charges in their order, and records at once what must be recorded.

        Errors: LedgerUnavailable; none of the charges counts then.
        """
        self.changing = frozenset(account.subject for ask in asks for account in ask.accounts)
        try:
            return self._settled(asks, partial(self._leases.dropped, self._policy.per_client))
        finally:
            self.changing = frozenset()

    def give_all_back(self, clock: float) -> None:
        """Returns what leases did not use.

        Errors: LedgerUnavailable; what could not be returned stays charged.
        """
        self._leases.now(clock)
        policy = self._policy
        self._settled((), partial(self._leases.drained, policy.per_client, policy.in_all))

    def _settled(self, asks: Sequence[Ask], dropped: Dropped) -> list[Outcome]:
        for _ in range(_ATTEMPTS):
            attempt = _Attempt()
            try:
                with self._store.session() as session:
                    group = self._begun(session, asks, attempt, dropped)
                    outcomes = [self._decided(ask, group) for ask in asks]
                    _give_back(group)
                    done = _appended(session, group)
            except BaseException:
                self._undo(attempt)
                raise
            if done:
                for account, units in group.fresh.items():
                    self._leases.put(account, units, group.now)
                return outcomes
            attempt.may_be_written = False  # surely nothing was
            self._undo(attempt)
        raise LedgerUnavailable("Too many servers write to this ledger at once.")

    def checked(self, head: Head | None, known: int) -> Head:
        """Returns the end of the chain if it is that of the ledger that was opened, or later.

        known: the last record that was known when the session began.
        """
        if head is None or head.policy != self._written:
            raise LedgerUnavailable(
                "The ledger is gone or has other budgets than when it was opened. Open it again."
            )
        if head.number < known:
            raise LedgerUnavailable(
                "The ledger was put back to an older state. Stop, and verify it."
            )
        return head

    def _begun(
        self,
        session: Session,
        asks: Sequence[Ask],
        attempt: _Attempt,
        dropped: Dropped,
    ) -> _Group:
        head = self.checked(session.head(), self.last_number)
        self.last_number = head.number
        now = self._leases.now(max([head.time, *(ask.now for ask in asks)]))
        attempt.dropped = [_Part(account, units, now) for account, units in dropped(now)]
        accounts = [account for ask in asks for account in ask.accounts]
        accounts += [part.account for part in attempt.dropped]
        ids = {account.id(now) for account in accounts}
        names = [ask.request[0] for ask in asks if ask.request]
        known = dict(session.requests(names, now - KEPT_S)) if names else {}
        draft = Draft(self._seal, head._replace(time=now), session.totals(sorted(ids)))
        return _Group(head, now, draft, known, attempt)

    def _decided(self, ask: Ask, group: _Group) -> Outcome:
        if ask.request:
            kept = group.known.get(ask.request[0])
            if kept == ask.request[1]:
                return True
            if kept is not None:
                return ConfigError(
                    "Expected a new key (request_id) for a new request: this one was used."
                )
        if not ask.rows:
            self._fill_up(ask, group)
            return False
        need = ask.each.times(ask.rows)
        room = [_room(account, ask.each, group) for account in ask.accounts]
        if ask.request and min(room) >= ask.rows:
            # Charged whole: if the acknowledgement is lost, a retry finds it charged or not at all.
            parts = [NOTHING] * len(ask.accounts)
        else:
            parts = [self._part(account, need, group, ask.request) for account in ask.accounts]
        rows = [_rows(ask.each, part.short_of(need)) for part in parts]
        for account, part, missing, possible in zip(ask.accounts, parts, rows, room, strict=True):
            if missing > possible:
                for other, units in zip(ask.accounts, parts, strict=True):
                    group.fresh[other] = group.fresh.get(other, NOTHING).plus(units)
                return _exceeded(account, need, part, group)
        for account, part, missing, possible in zip(ask.accounts, parts, rows, room, strict=True):
            if missing:
                spare = min(self._most(account) - missing, (possible - missing) // _SHARE)
                more = 0 if ask.request else max(0, min(self._plenty(account, group), spare))
                lease = ask.each.times(missing + more).where_short(part.short_of(need))
                group.draft.charge(account.id(group.now), lease)
                part = part.plus(lease)
            rest = part.minus(need)
            group.fresh[account] = group.fresh.get(account, NOTHING).plus(rest)
        if ask.request:
            group.draft.keep(Request(*ask.request, group.now))
            group.known[ask.request[0]] = ask.request[1]
        return False

    def _fill_up(self, ask: Ask, group: _Group) -> None:
        """Leases what is missing to a full lease, as far as the budget has plenty."""
        for account in ask.accounts:
            held = self._leases.unused(account, group.now).plus(group.fresh.get(account, NOTHING))
            short = held.short_of(ask.each.times(self._most(account)))
            room = _room(account, ask.each, group) // _SHARE
            rows = min(_rows(ask.each, short), room, self._plenty(account, group))
            lease = ask.each.times(rows).at_most(short)
            if lease != NOTHING:
                group.draft.charge(account.id(group.now), lease)
                group.fresh[account] = group.fresh.get(account, NOTHING).plus(lease)

    def _plenty(self, account: Account, group: _Group) -> int:
        """Counts the answers of a lease: who asked little before loses little in a crash."""
        return min(self._most(account), group.draft.total(account.id(group.now)).queries)

    def _most(self, account: Account) -> int:
        return self._lease_rows * (_OF_ALL if account.subject is None else 1)

    def _part(self, account: Account, need: Units, group: _Group, request: object) -> Units:
        """Takes what there is in memory, and of what this group leased."""
        fresh = group.fresh.pop(account, NOTHING)
        part = self._leases.take_up_to(account, fresh.short_of(need), group.now)
        group.attempt.taken.append(_Part(account, part, group.now, request is not None))
        return fresh.plus(part)

    def _undo(self, attempt: _Attempt) -> None:
        """Puts back what a failed attempt took, but for what the store may hold as gone.

        A request with a key may have been charged although that failed, with what leases held for
        it or for others of its group: its retry is free then. What was dropped may be returned.
        """
        back = attempt.taken
        if attempt.may_be_written:
            gone = {part.account for part in back if part.request}
            back = [part for part in back if part.account not in gone]
        else:
            back = back + attempt.dropped
        for part in back:
            if part.units != NOTHING:
                self._leases.put(part.account, part.units, part.now)


def _give_back(group: _Group) -> None:
    for account, units, *_ in group.attempt.dropped:
        name = account.id(group.now)
        if group.draft.total(name).covers(units):
            group.draft.charge(name, units.negative())


def _appended(session: Session, group: _Group) -> bool:
    if group.draft.is_empty:
        return True
    group.attempt.may_be_written = True
    return session.append(group.draft.entry, group.head)


def _rows(each: Units, short: Units) -> int:
    """Counts the answers whose charges make up for what is short."""
    pairs = zip(short, each, strict=True)
    return max(-(-missing // count) if count else 0 for missing, count in pairs)


def _room(account: Account, each: Units, group: _Group) -> int:
    """Counts the answers that the budget still holds."""
    total = group.draft.total(account.id(group.now))
    rooms = [
        max(0, limit - spent) // count
        for limit, spent, count in zip(account.budget.limits, total, each, strict=True)
        if limit != INFINITE and count
    ]
    return min(rooms, default=INFINITE)


def _exceeded(account: Account, need: Units, part: Units, group: _Group) -> BudgetExceeded:
    budget = account.budget
    spent = group.draft.total(account.id(group.now))
    left = Units(
        *(
            INFINITE if limit == INFINITE else max(0, limit - count) + held
            for limit, count, held in zip(budget.limits, spent, part, strict=True)
        )
    )
    renews_at = budget.renews_at(account.start(group.now))
    when = "never renews" if renews_at is None else f"renews at {_date(renews_at)}"
    whose = "all clients together" if account.subject is None else "this client"
    return BudgetExceeded(
        f"The budget of {whose} does not cover {counted(need.queries, 'answers')} "
        f"({said(need, budget)}); what is left {per(budget)} is {said(left, budget)}. It {when}. "
        "Nothing was charged.",
        said(left, budget),
        renews_at,
    )


def _date(seconds: int) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):  # of a clock that counts in other units, perhaps
        return f"{seconds} s after 1970"
