"""What is left of budgets, looked up while others charge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shieldnet.serving.budget import Balance
from shieldnet.serving.leases import Account, Leases
from shieldnet.serving.settling import Settler
from shieldnet.serving.stores.base import Store
from shieldnet.serving.units import INFINITE, NOTHING, Units

WAITS_S = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128)
"""How long to wait after each look that is not exact."""


class Found(NamedTuple):
    """What a look found. is_exact: no lease of the accounts came or went meanwhile."""

    balances: tuple[Balance, ...]
    is_exact: bool


@dataclass(frozen=True)
class Look:
    """Compares what was charged, as the store has it, with what leases in memory still hold.

    Guarantee: never shows more left than there was at some moment of the look. What other servers
    hold as leases, and a lease that comes or goes during the look, counts as spent.
    """

    store: Store
    settler: Settler
    leases: Leases
    clock: Callable[[], float]

    def __call__(self, accounts: Sequence[Account]) -> Found:
        """Looks once. Errors: LedgerUnavailable."""
        known, drops = self.settler.last_number, self.leases.drops
        earlier = self.leases.now(self.clock())
        before = [self.leases.unused(account, earlier) for account in accounts]
        with self.store.reading() as session:
            head = self.settler.checked(session.head(), known)
            now = self.leases.now(max(self.clock(), head.time))
            totals = session.totals([account.id(now) for account in accounts])
        # Before the leases are looked at: a group that ended since then shows in them.
        changing = self.settler.changing
        balances, is_exact = [], True
        for account, first in zip(accounts, before, strict=True):
            last = self.leases.unused(account, now)
            # What was dropped may be back in the store, and leased again.
            is_same = drops == self.leases.drops and account.start(earlier) == account.start(now)
            held = first.at_most(last) if is_same else NOTHING
            balances.append(_balance(account, totals.get(account.id(now), NOTHING), held, now))
            is_exact &= is_same and first.covers(last) and account.subject not in changing
        return Found(tuple(balances), is_exact)


def _balance(account: Account, leased: Units, held: Units, now: int) -> Balance:
    spent = leased.minus(held)
    limits = account.budget.limits
    left = Units(
        *(
            INFINITE if limit == INFINITE else max(0, limit - count)
            for limit, count in zip(limits, spent, strict=True)
        )
    )
    return Balance(account.budget, spent, left, account.budget.renews_at(account.start(now)))
