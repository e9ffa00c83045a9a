"""The budgets of a ledger are part of it: all who write to it agree on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from shieldnet.core.errors import ConfigError, LedgerUnavailable
from shieldnet.serving.budget import Budget
from shieldnet.serving.chain import VERSION, Draft, Seal
from shieldnet.serving.stores.base import Head, Session


@dataclass(frozen=True)
class Policy:
    """Says what each client, and all of them together, may learn."""

    per_client: tuple[Budget, ...]
    in_all: tuple[Budget, ...]

    def __str__(self) -> str:
        each, all_ = (" and ".join(map(str, part)) for part in (self.per_client, self.in_all))
        return f"{each} for each client, {all_} for all of them together"

    def written(self, seal: Seal) -> str:
        """Writes the budgets as JSON, with a hash that tells whether a key is the ledger's."""
        document = {
            "version": VERSION,
            "per_client": _documents(self.per_client),
            "in_all": _documents(self.in_all),
            "key": seal.of("policy"),
        }
        return json.dumps(document, sort_keys=True)

    def adopt(self, session: Session, seal: Seal, *, change: bool) -> None:
        """Gives an empty ledger its budgets, and compares them with those of one that is not.

        Errors: ConfigError for a newer version, another key, or other budgets without ``change``.
        """
        head, mine = session.head(), self.written(seal)
        if head is not None:
            if head.policy == mine:
                return
            require_own(head, seal)
            if not change:
                raise ConfigError(
                    f"This ledger was opened with other budgets: it has {stated(head)}, got "
                    f"{self}. Give the same budgets, or another ledger. To change them, on record: "
                    "shieldnet.serving.Ledger(url, per_client=shieldnet.serving.Budget(bits=...), "
                    "change=True).close()"
                )
        draft = Draft(seal, head or Head(), {})
        draft.adopt(mine)
        if not session.append(draft.entry, head):
            raise LedgerUnavailable("Another process changed this ledger meanwhile. Try again.")


def require_own(head: Head, seal: Seal) -> None:
    """Refuses a ledger of a newer version, and one that another key belongs to."""
    document = json.loads(head.policy)
    if document["version"] != VERSION:
        raise ConfigError(
            f"Expected a ledger of version {VERSION}, got {document['version']}: a newer shieldnet "
            "wrote it. Upgrade this one."
        )
    if document["key"] != seal.of("policy"):
        raise ConfigError(
            "Expected the key with which this ledger was made, got another: clients would be "
            "unknown, and their budgets full again."
        )


def stated(head: Head) -> Policy:
    """Returns the budgets that a ledger has."""
    document = json.loads(head.policy)
    return Policy(
        tuple(Budget.of_document(part) for part in document["per_client"]),
        tuple(Budget.of_document(part) for part in document["in_all"]),
    )


def _documents(budgets: Sequence[Budget]) -> list[dict[str, object]]:
    return [budget.document() for budget in sorted(budgets, key=lambda budget: budget.window)]
