"""Processes that fork beside a ledger: each lease is given out by one of them."""

import os
import sys
import threading

import pytest

from shieldnet.core.errors import BudgetExceeded, LedgerUnavailable, ShieldnetError
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.serving import forks
from shieldnet.serving.budget import Budget
from shieldnet.serving.ledger import Ledger

COST = PrivacyCost(bits=3.0)
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="No fork here.")


def answered(ledger: Ledger, ends: type[Exception] = BudgetExceeded) -> int:
    for count in range(10_000):
        try:
            ledger.charge("alice", COST)
        except ends:
            return count
    raise AssertionError("The budget never ends.")


def answered_in_child(ledger: Ledger, ends: type[Exception] = BudgetExceeded) -> int:
    """Asks in a forked child until it is refused."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, str(answered(ledger, ends)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    told = os.read(reading, 20)
    os.close(reading)
    os.waitpid(child, 0)
    return int(told)


def test_threads_that_fork_at_once_give_no_lease_to_two_processes(opened) -> None:
    ledger = opened(per_client=Budget(queries=1000), timeout_s=5)
    given = [sum(1 for _ in range(300) if ledger.charge("alice", COST))]
    together = threading.Barrier(2)

    def fork() -> None:
        together.wait()
        given.append(answered_in_child(ledger))

    threads = [threading.Thread(target=fork) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    given.append(answered(ledger))  # the parent goes on
    assert len(given) == 4
    assert sum(given) <= 1000
    ledger.verify()


def test_a_fork_that_python_does_not_see_gives_no_lease_twice(opened, monkeypatch) -> None:
    ledger = opened(per_client=Budget(queries=300))
    given = sum(1 for _ in range(50) if ledger.charge("alice", COST))
    for hook in ("_open", "_inherited"):  # what the hooks of a fork look at
        monkeypatch.setattr(forks, hook, type(getattr(forks, hook))())
    # What a driver keeps of its parent may break it: then there is no answer.
    given += answered_in_child(ledger, ShieldnetError)
    monkeypatch.undo()
    assert given + answered(ledger) <= 300


def test_a_store_that_cannot_be_closed_stops_no_other_at_a_fork(tmp_path, monkeypatch) -> None:
    settings = {"per_client": Budget(queries=200), "timeout_s": 5}
    ledgers = [Ledger(f"sqlite:///{tmp_path / name}.db", **settings) for name in "ab"]
    given = [1 for ledger in ledgers if ledger.charge("alice", COST)]
    told: list[object] = []
    asked: list[None] = []

    def fails() -> None:
        asked.append(None)
        raise OSError("It cannot be closed.")

    for ledger in ledgers:
        monkeypatch.setattr(ledger._store._store, "close", fails)
    monkeypatch.setattr(sys, "unraisablehook", lambda error: told.append(error.exc_value))
    in_children = [answered_in_child(ledger) for ledger in ledgers]
    monkeypatch.undo()
    assert [str(error) for error in told] == ["It cannot be closed."] * 2
    assert len(asked) == 2 * len(ledgers)  # all of them at each of the forks
    for one, more, ledger in zip(given, in_children, ledgers, strict=True):
        assert one + more + answered(ledger) <= 200
        ledger.close()


def test_a_closed_ledger_stays_closed_in_a_child(opened) -> None:
    ledger = opened(per_client=Budget(queries=9))
    ledger.close()
    child = os.fork()
    if not child:
        code = 1
        try:
            ledger.charge("alice", COST)
        except LedgerUnavailable:
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_ledgers_open_while_others_fork(tmp_path) -> None:
    ended = threading.Event()

    def open_ledgers() -> None:
        while not ended.is_set():
            Ledger(f"sqlite:///{tmp_path / 'l.db'}").close()

    thread = threading.Thread(target=open_ledgers)
    thread.start()
    ledger = Ledger(f"sqlite:///{tmp_path / 'm.db'}", per_client=Budget(queries=300))
    for _ in range(20):
        child = os.fork()
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    ended.set()
    thread.join()
    assert answered(ledger) == 300
    ledger.close()
