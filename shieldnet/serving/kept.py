"""What a ledger holds, for those who look at it: nothing is leased, and nothing changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shieldnet.core.errors import ConfigError
from shieldnet.serving.budget import Budget
from shieldnet.serving.chain import EVERYBODY, Checked, Seal, account_id, verify
from shieldnet.serving.policy import Policy, require_own, stated
from shieldnet.serving.secret import key_of
from shieldnet.serving.stores import open_store
from shieldnet.serving.stores.base import State
from shieldnet.serving.stores.pages import Pages
from shieldnet.serving.units import NOTHING, Units


@dataclass(frozen=True)
class KeptLedger:
    """An existing ledger: its state as of one moment, and its records, which are read when asked.

    Errors of ``read``: ConfigError where there is no ledger, or another key belongs to it;
    LedgerUnavailable.
    """

    policy: Policy
    state: State
    seal: Seal
    url: str

    @classmethod
    def read(cls, url: str, key: str | bytes | None = None) -> KeptLedger:
        """Reads a ledger. url, key: as in ``Ledger``."""
        path, is_file = Path(url.removeprefix("sqlite:///")), url.startswith("sqlite:///")
        if is_file and not path.is_file():
            raise ConfigError(f"There is no ledger {path}.")
        with closing(open_store(url, read_only=True)) as store:
            if not is_file:  # a file's key is looked for, or made, beside a ledger alone
                key = key_of(key, url)
            state = Pages(store).state()
        head = state.head
        if not head.number:
            raise ConfigError("There is no ledger at this address: nothing was recorded there.")
        seal = Seal(key_of(key, url))
        require_own(head, seal)
        return cls(stated(head), state, seal, url)

    def charged(self, subject: str | None, budget: Budget) -> Units:
        """Returns what was charged in the last window that is recorded, with all leases.

        subject: the keyed hash of a client; None for all clients together.
        """
        start = budget.start(self.state.head.time)
        return self.state.totals.get(account_id(subject, budget.window, start), NOTHING)

    @cached_property
    def subjects(self) -> frozenset[str]:
        """Returns the keyed hashes of all clients that were ever charged."""
        names = {account.partition(":")[0] for account in self.state.totals}
        return frozenset(names - {EVERYBODY})

    def most_charged(self, count: int) -> list[str]:
        """Returns so many clients by their hashes: most answers in the current windows first."""

        def answers(subject: str) -> list[int]:
            return [-self.charged(subject, budget).queries for budget in self.policy.per_client]

        return sorted(self.subjects, key=lambda subject: (answers(subject), subject))[:count]

    def verify(self, heads: Sequence[str] = ()) -> Checked:
        """Raises VerificationFailed if the ledger was changed without its key."""
        with closing(open_store(self.url, read_only=True)) as store:
            return verify(Pages(store), self.seal, heads)

    def lines(self) -> Iterator[str]:
        """Returns the records as lines of JSON, with their numbers and macs."""
        after = 0
        with closing(open_store(self.url, read_only=True)) as store:
            while records := Pages(store).page(after)[1]:
                for record in records:
                    line: dict[str, Any] = {"number": record.number, "mac": record.mac}
                    yield json.dumps({**line, **json.loads(record.body)})
                after = records[-1].number
