"""Attempts to record charges that fail: nothing is lost that surely was not written."""

from contextlib import contextmanager, suppress

import pytest
from servers import Clock

from shieldnet.core.errors import BudgetExceeded, LedgerUnavailable
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.serving.budget import Budget
from shieldnet.serving.ledger import Ledger
from shieldnet.serving.settling import Ask
from shieldnet.serving.units import units_of

COST = PrivacyCost(bits=3.0)
DAY = 86_400


def failing(ledger: Ledger, monkeypatch, fails, times: int = 1) -> None:
    """Has the store fail so often: another server is faster, or it breaks."""
    session, left = ledger._store.session, [times]

    @contextmanager
    def fail():
        with session() as opened:
            if left[0]:
                left[0] -= 1
                with fails(opened, monkeypatch):
                    yield opened
            else:
                yield opened

    monkeypatch.setattr(ledger._store, "session", fail)


@contextmanager
def lost_race(session, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(session, "append", lambda entry, after: False)
        yield


@contextmanager
def broken(session, monkeypatch):
    def breaks(ids):
        raise LedgerUnavailable("It broke.")

    with monkeypatch.context() as patch:
        patch.setattr(session, "totals", breaks)
        yield


def held(ledger: Ledger, client: str) -> int:
    """Counts the answers of a client's lease."""
    account = ledger._accounts_of(client)[0]
    return ledger._leases.unused(account, ledger._leases.now(ledger.clock())).queries


def settled(ledger: Ledger) -> None:
    """Waits for what was handed in."""
    ledger._writer.run(lambda: None, 30)


def with_a_lease_of_all_that_is_left(opened) -> Ledger:
    ledger, other = (opened(per_client=Budget(queries=120)) for _ in range(2))
    for _ in range(60):
        ledger.charge("alice", COST)
    settled(ledger)
    for number in range(120):
        try:
            other.charge("alice", COST, key=str(number), content=b"")
        except BudgetExceeded:
            break
    assert held(ledger, "alice") >= 5
    return ledger


def test_a_lost_race_costs_a_request_with_a_key_nothing(opened, monkeypatch) -> None:
    ledger = with_a_lease_of_all_that_is_left(opened)
    count = held(ledger, "alice")
    failing(ledger, monkeypatch, lost_race)
    assert ledger.charge("alice", COST, count, key="k", content=b"x").rows == count


def test_what_a_request_with_a_key_took_from_its_group_is_never_given_twice(
    opened, monkeypatch
) -> None:
    ledger = with_a_lease_of_all_that_is_left(opened)
    count, now = held(ledger, "alice"), ledger._leases.now(ledger.clock())
    accounts, each = ledger._accounts_of("alice"), units_of(COST)
    refused = Ask(accounts, each, count + 1, now)
    charged = Ask(accounts, each, count, now, ("name", "content"))
    session = ledger._store.session

    @contextmanager
    def unheard():
        with session() as opened_session:
            yield opened_session
        raise LedgerUnavailable("The acknowledgement was lost.")

    monkeypatch.setattr(ledger._store, "session", unheard)
    with pytest.raises(LedgerUnavailable):
        ledger._settler.settle([refused, charged])
    monkeypatch.undo()
    assert ledger._settler.settle([charged]) == [True]  # charged before: its answer is free now
    assert held(ledger, "alice") == 0


@pytest.mark.parametrize("fails", [lost_race, broken])
def test_leases_of_clients_beyond_the_limit_outlive_a_failed_attempt(
    opened, monkeypatch, fails
) -> None:
    ledger = opened(per_client=Budget(queries=1000), max_clients=1)
    for _ in range(60):
        ledger.charge("alice", COST)
    settled(ledger)
    ledger.charge("bob", COST)
    settled(ledger)  # the next to write returns alice's
    before = held(ledger, "alice")
    failing(ledger, monkeypatch, fails)
    with suppress(LedgerUnavailable):
        ledger.charge("dave", COST)
    monkeypatch.undo()
    ledger.close()
    again = opened(per_client=Budget(queries=1000), max_clients=1)
    assert before > 0
    assert again.left("alice")[0].spent.queries == 60


def test_closing_says_that_nothing_could_be_returned(opened, monkeypatch) -> None:
    ledger = opened(per_client=Budget(queries=1000))
    for _ in range(60):
        ledger.charge("alice", COST)
    settled(ledger)
    assert held(ledger, "alice")
    failing(ledger, monkeypatch, lost_race, times=10**6)
    with pytest.raises(LedgerUnavailable, match="Too many servers write"):
        ledger.close()


def test_closing_returns_nothing_of_a_window_that_is_over_for_others(opened) -> None:
    clocks = Clock(), Clock()
    slow, fast = (
        opened(per_client=Budget(queries=1000, window="day"), clock=clock) for clock in clocks
    )
    for _ in range(60):
        slow.charge("alice", COST)
    clocks[1].now += DAY
    for _ in range(200):
        fast.charge("alice", COST)
    settled(slow)
    settled(fast)
    assert held(slow, "alice")
    slow.close()
    assert fast.left("alice")[0].spent.queries == 200
