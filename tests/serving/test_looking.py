"""What is left is looked up beside the charges: none waits, and no more is shown than there is."""

from contextlib import contextmanager

import pytest

from shieldnet.core.errors import LedgerUnavailable
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.serving.budget import Budget

COST = PrivacyCost(bits=3.0)


def test_what_is_left_is_told_while_a_writer_holds_the_store(opened, monkeypatch) -> None:
    ledger, other = (opened(per_client=Budget(queries=100), timeout_s=2) for _ in range(2))
    ledger.charge("alice", COST, 5)
    monkeypatch.setattr(ledger._store, "session", lambda: pytest.fail("It opened a session."))
    with other._store.session():
        assert ledger.left("alice")[0].queries == 95
    monkeypatch.undo()


def test_a_lease_that_comes_during_a_look_is_never_shown_as_left(opened, monkeypatch) -> None:
    ledger = opened(per_client=Budget(queries=1000))
    for _ in range(60):
        ledger.charge("alice", COST)
    reading, came = ledger._reads.reading, []

    @contextmanager
    def slow():
        with reading() as session:
            yield session
        ledger.charge("alice", COST, 101)  # more than a lease holds: another is recorded
        came.append(101)

    monkeypatch.setattr(ledger._reads, "reading", slow)
    left = ledger.left("alice")[0].queries
    monkeypatch.undo()
    assert came
    assert left <= 1000 - 60 - sum(came[:-1])
    assert ledger.left("alice")[0].queries == 1000 - 60 - sum(came)


def test_a_ledger_that_nobody_can_write_to_is_told(opened, monkeypatch) -> None:
    ledger = opened(timeout_s=2)
    ledger.require_writable()

    @contextmanager
    def gone():
        raise LedgerUnavailable("It is gone.")
        yield

    monkeypatch.setattr(ledger._store, "session", gone)
    with pytest.raises(LedgerUnavailable, match="It is gone"):
        ledger.require_writable()


def test_a_closed_ledger_tells_nothing(opened) -> None:
    ledger = opened(per_client=Budget(queries=9))
    assert ledger.left("alice")[0].queries == 9
    ledger.close()
    with pytest.raises(LedgerUnavailable, match="was closed"):
        ledger.left("alice")
