"""Laws of the ledger, on each of its stores."""

import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from servers import KEY, Clock

from shieldnet.core.errors import BudgetExceeded, ConfigError, LedgerUnavailable, VerificationFailed
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.serving.budget import Budget
from shieldnet.serving.chain import Draft, verify
from shieldnet.serving.kept import KeptLedger
from shieldnet.serving.ledger import Ledger
from shieldnet.serving.stores.base import Entry, Head, Record, State
from shieldnet.serving.stores.pages import Pages
from shieldnet.serving.units import INFINITE, NOTHING, Units, limits_of, units_of

COST = PrivacyCost(bits=math.log2(40))
DAY = 86_400
FORK = multiprocessing.get_context("fork")


def answered(ledger: Ledger, client: str, *, most: int = 100_000) -> int:
    """Asks until the budget refuses, and counts the answers."""
    for count in range(most):
        try:
            ledger.charge(client, COST)
        except BudgetExceeded:
            return count
    return most


def test_a_client_gets_exactly_what_the_budget_holds(opened) -> None:
    ledger = opened(per_client=Budget(bits=2000))
    assert answered(ledger, "alice") == int(2000e6) // units_of(COST).bits == 375
    assert answered(ledger, "bob") == 375
    (left,) = ledger.left("alice")
    assert 0 <= left.bits < COST.bits
    assert left.spent == units_of(COST).times(375)._replace(rho=INFINITE)


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_batches_are_charged_by_row_and_whole_or_not_at_all(opened, rows: int) -> None:
    ledger = opened(per_client=Budget(queries=100))
    for _ in range(100 // rows):
        assert ledger.charge("alice", COST, rows).units.queries == rows
    rest = 100 % rows
    with pytest.raises(BudgetExceeded, match=rf"left in total is {rest} quer(y|ies)"):
        ledger.charge("alice", COST, rest + 1)
    assert ledger.left("alice")[0].queries == rest  # the refused charge changed nothing
    assert ledger.charge("alice", COST, rest).rows == rest
    assert ledger.charge("alice", COST, 0).units == NOTHING


def test_all_clients_together_have_a_budget_too(opened) -> None:
    ledger = opened(per_client=Budget(queries=60), in_all=Budget(queries=100))
    counts = [answered(ledger, client) for client in ("alice", "bob", "carol")]
    assert counts == [60, 40, 0]
    assert ledger.left()[0].queries == 0
    with pytest.raises(BudgetExceeded, match="budget of all clients together does not cover"):
        ledger.charge("carol", COST)
    assert ledger.left("carol")[0].queries == 60


def test_mu_adds_in_squares_and_is_never_rounded_down(opened) -> None:
    cost = PrivacyCost(bits=math.inf, mu=0.1)
    ledger = opened(per_client=Budget(mu=1.0))
    assert sum(1 for _ in range(99) if ledger.charge("alice", cost)) == 99
    # 0.1 as a float is above 0.1, so that its hundredth answer no longer fits.
    assert units_of(cost).rho == 5_000_001
    with pytest.raises(BudgetExceeded, match="mu 0.1"):
        ledger.charge("alice", cost)


def test_a_budget_renews_with_its_window_and_another_does_not(opened) -> None:
    clock = Clock()
    budgets = (Budget(queries=10, window="day"), Budget(queries=25))
    ledger = opened(per_client=budgets, clock=clock)
    assert answered(ledger, "alice") == 10
    with pytest.raises(BudgetExceeded, match="renews at 2027-01-16 00:00 UTC") as refused:
        ledger.charge("alice", COST)
    assert refused.value.renews_at == (clock.now // DAY + 1) * DAY
    clock.now += DAY
    assert answered(ledger, "alice") == 10
    clock.now += DAY
    assert answered(ledger, "alice") == 5
    with pytest.raises(BudgetExceeded, match="never renews"):
        ledger.charge("alice", COST)


def test_a_lease_dies_with_its_window(opened) -> None:
    clock = Clock()
    ledger = opened(per_client=Budget(queries=100, window="day"), clock=clock)
    ledger.charge("alice", COST)
    clock.now += DAY
    assert answered(ledger, "alice") == 100


@pytest.mark.parametrize("back", [DAY, 30 * DAY])
def test_a_clock_that_goes_back_opens_no_window(opened, back: int) -> None:
    clock = Clock()
    ledger = opened(per_client=Budget(queries=10, window="day"), clock=clock)
    assert answered(ledger, "alice") == 10
    clock.now -= back
    assert answered(ledger, "alice") == 0
    again = opened(per_client=Budget(queries=10, window="day"), clock=clock)  # as after a restart
    assert answered(again, "alice") == 0


def test_a_restart_forgets_nothing(opened) -> None:
    first = opened(per_client=Budget(queries=100))
    first.charge("alice", COST, 30)
    first.close()
    second = opened(per_client=Budget(queries=100))
    assert second.left("alice")[0].queries == 70
    with pytest.raises(LedgerUnavailable, match="was closed"):
        first.charge("alice", COST)
    assert answered(second, "alice") == 70


def test_a_crash_loses_a_lease_at_most_and_gives_nothing_away(opened, url) -> None:
    first = opened(per_client=Budget(queries=1000), lease_rows=50)
    given = sum(1 for _ in range(10) if first.charge("alice", COST))
    second = opened(per_client=Budget(queries=1000), lease_rows=50)  # the first says no more
    left = answered(second, "alice")
    assert 1000 - given - 50 <= left <= 1000 - given


def test_two_ledgers_share_a_budget(opened) -> None:
    first, second = (opened(per_client=Budget(queries=101), lease_rows=8) for _ in range(2))
    counts = [0, 0]
    for _ in range(101):
        for at, ledger in enumerate((first, second)):
            try:
                ledger.charge("alice", COST)
                counts[at] += 1
            except BudgetExceeded:
                pass
    assert sum(counts) == 101  # leases shrink, so that none is left over


def test_threads_never_share_an_answer(opened) -> None:
    ledger = opened(per_client=Budget(queries=500), in_all=Budget(queries=900), lease_rows=7)
    clients = ("alice", "bob") * 2
    with ThreadPoolExecutor(len(clients)) as pool:
        counts = list(pool.map(lambda client: answered(ledger, client), clients))
    assert sum(counts) == 900
    assert max(counts[0] + counts[2], counts[1] + counts[3]) <= 500
    ledger.verify()


def test_a_retry_under_its_key_is_charged_once(opened) -> None:
    ledger = opened(per_client=Budget(queries=10))
    first = ledger.charge("alice", COST, 4, key="r1", content=b"image")
    again = ledger.charge("alice", COST, 4, key="r1", content=b"image")
    assert (first.repeated, again.repeated, again.units) == (False, True, NOTHING)
    assert ledger.left("alice")[0].queries == 6
    ledger.close()
    restarted = opened(per_client=Budget(queries=10))  # as after a crash between charge and answer
    assert restarted.charge("alice", COST, 4, key="r1", content=b"image").repeated
    assert not restarted.charge("bob", COST, 4, key="r1", content=b"image").repeated
    with pytest.raises(ConfigError, match="a new key .* for a new request"):
        restarted.charge("alice", COST, 4, key="r1", content=b"another image")
    with pytest.raises(ConfigError, match="Expected content="):
        restarted.charge("alice", COST, key="r2")
    assert restarted.left("alice")[0].queries == 6


def test_a_refused_request_keeps_no_key(opened) -> None:
    ledger = opened(per_client=Budget(queries=3, window="day"), clock=(clock := Clock()))
    with pytest.raises(BudgetExceeded):
        ledger.charge("alice", COST, 4, key="r1", content=b"image")
    with pytest.raises(BudgetExceeded):
        ledger.charge("alice", COST, 4, key="r1", content=b"image")
    ledger.charge("alice", COST, 3, key="r2", content=b"image")
    clock.now += 2 * DAY
    later = ledger.charge("alice", COST, 3, key="r2", content=b"image")
    assert not later.repeated  # keys are kept for a day


def test_the_same_key_at_once_is_charged_once(opened) -> None:
    ledger = opened(per_client=Budget(queries=10))

    def ask(_: int) -> bool:
        return ledger.charge("alice", COST, key="r1", content=b"image").repeated

    with ThreadPoolExecutor(8) as pool:
        repeated = list(pool.map(ask, range(8)))
    assert sorted(repeated) == [False] + [True] * 7
    assert ledger.left("alice")[0].queries == 9


def test_nothing_in_a_store_names_a_client_or_holds_a_request(tmp_path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'l.db'}")
    ledger.charge("alice.the.client", COST, key="the-key", content=b"the-image")
    ledger.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not any(word in kept for word in (b"alice", b"the-key", b"the-image"))
    assert oct((tmp_path / "l.db.key").stat().st_mode & 0o777) == "0o600"


def test_what_was_changed_does_not_verify(opened, url) -> None:
    ledger = opened(per_client=Budget(queries=100), lease_rows=1)
    for client in ("alice", "bob"):
        ledger.charge(client, COST, 10, key="key", content=b"image")
    checked = ledger.verify()
    assert checked == ledger.verify([checked.mac])
    with pytest.raises(VerificationFailed, match="put back to an older state"):
        ledger.verify(["ab" * 32])
    kept = KeptLedger.read(url, KEY)
    held = Held(kept.state, Pages(ledger._store).page(0)[1], kept.state.head)
    for forged in forgeries(held):
        with pytest.raises(VerificationFailed, match="changed by somebody without its key"):
            verify(forged, kept.seal)
    assert verify(held, kept.seal, [checked.mac]) == checked
    assert kept.verify([checked.mac]) == checked


@dataclass(frozen=True)
class Held:
    """A ledger in memory: its state, its records, and the end that it has after the last."""

    kept: State
    chain: list[Record]
    end: Head

    def state(self) -> State:
        return self.kept

    def page(self, after: int) -> tuple[Head, list[Record]]:
        return self.end, [record for record in self.chain if record.number > after][:2]


def forgeries(held):
    for chain in forged_chains(held.chain):
        yield replace(held, chain=chain)
    for kept in forged_states(held.kept):
        yield replace(held, kept=kept, end=kept.head)
    first = held.chain[0]
    empty = State(held.kept.head._replace(number=1, mac=first.mac), {}, {})
    # All but the records is put back; what comes after would be what others wrote meanwhile.
    yield Held(empty, held.chain, empty.head)
    yield replace(held, chain=[first._replace(number=-1), *held.chain])
    yield replace(held, chain=[*held.chain, first._replace(number=held.end.number + 1)])


def forged_chains(records):
    at = next(at for at, record in enumerate(records) if '"queries":10' in record.body)
    fewer = records[at]._replace(body=records[at].body.replace('"queries":10', '"queries":1'))
    yield [*records[:at], fewer, *records[at + 1 :]]
    yield [*records[:3], *records[4:]]
    yield records[:-1]
    yield [*records[:2], records[3], records[2], *records[4:]]


def forged_states(kept):
    account = next(iter(kept.totals))
    yield kept._replace(totals={**kept.totals, account: NOTHING})
    yield kept._replace(totals={name: kept.totals[name] for name in list(kept.totals)[1:]})
    name, (content, then) = next(iter(kept.requests.items()))
    yield kept._replace(requests={**kept.requests, "another": (content, then)})
    yield kept._replace(requests={**kept.requests, name: ("content", then)})
    yield kept._replace(requests={**kept.requests, name: (content, then + DAY)})
    yield kept._replace(requests={})
    head = kept.head
    yield kept._replace(head=head._replace(time=head.time + DAY))
    yield kept._replace(head=head._replace(policy=head.policy.replace("100", "999")))
    yield kept._replace(head=head._replace(number=head.number + 1))


def test_other_budgets_another_key_and_a_newer_version_are_refused(opened, url) -> None:
    opened(per_client=Budget(queries=100))
    with pytest.raises(ConfigError, match="it has 100 queries in total for each client"):
        opened(per_client=Budget(queries=200))
    with pytest.raises(ConfigError, match="the key with which this ledger was made"):
        Ledger(url, key=bytes(32), per_client=Budget(queries=100))
    changed = opened(per_client=Budget(queries=200), change=True)
    assert answered(changed, "alice") == 200
    changed.verify()


def test_a_server_with_the_old_budgets_stops_when_they_change(opened) -> None:
    old = opened(per_client=Budget(queries=100))
    opened(per_client=Budget(queries=1), change=True)
    with pytest.raises(LedgerUnavailable, match="has other budgets"):
        old.charge("alice", COST)


def test_a_ledger_of_a_newer_version_is_refused(opened) -> None:
    ledger = opened()
    with ledger._store.session() as session:
        head = session.head()
        newer = Head(head.number, head.mac, head.time, head.policy.replace('": 1', '": 2'))
        assert session.append(Entry(newer), head)
    with pytest.raises(ConfigError, match="a newer shieldnet wrote it"):
        opened()


def test_an_append_after_another_head_changes_nothing(opened) -> None:
    ledger = opened()
    with ledger._store.session() as session:
        head, before = session.head(), (session.state(), session.records(0, 9))
        draft = Draft(ledger._seal, head, {})
        draft.charge("account", Units(1, 1, 1))
        for wrong in (None, head._replace(mac="no"), head._replace(number=9)):
            assert not session.append(draft.entry, wrong)
        assert (session.state(), session.records(0, 9)) == before


def test_a_client_must_have_a_name(opened) -> None:
    ledger = opened()
    for nobody in ("", None, 7, b"alice", "a" * 2000):
        with pytest.raises(ConfigError, match="Expected client as 1 to 1024 characters"):
            ledger.charge(nobody, COST)
    with pytest.raises(ConfigError, match="Expected rows >= 0"):
        ledger.charge("alice", COST, -1)


def test_clients_beyond_the_limit_return_their_leases(opened) -> None:
    ledger = opened(per_client=Budget(queries=100), max_clients=2)
    for client in ("a", "b", "c", "d", "e"):
        ledger.charge(client, COST)
    other = opened(per_client=Budget(queries=100))
    assert [int(other.left(client)[0].queries) for client in "ab"] == [99, 99]
    assert answered(ledger, "a") == 99


def race(url: str, ready, go, results) -> None:
    with Ledger(url, key=KEY, per_client=Budget(queries=3000), lease_rows=20) as ledger:
        ready.release()
        go.wait()
        results.put(answered(ledger, "alice"))


def test_processes_that_race_for_the_last_answer_get_exactly_the_budget(url) -> None:
    ready, go, results = FORK.Semaphore(0), FORK.Event(), FORK.Queue()
    racers = [FORK.Process(target=race, args=(url, ready, go, results)) for _ in range(2)]
    for racer in racers:
        racer.start()
        ready.acquire()
    go.set()
    assert sum(results.get(timeout=60) for _ in racers) == 3000
    for racer in racers:
        racer.join()


def serve_until_killed(url: str, answers, begun) -> None:
    ledger = Ledger(url, key=KEY, per_client=Budget(queries=10**6), lease_rows=50)
    begun.set()
    while True:
        ledger.charge("alice", COST)
        answers.value += 1  # the answer is out


def test_a_kill_loses_one_lease_at_most(url) -> None:
    # No lock, which a killed server would keep.
    answers, begun = FORK.RawValue("l", 0), FORK.Event()
    server = FORK.Process(target=serve_until_killed, args=(url, answers, begun))
    server.start()
    assert begun.wait(30)
    while answers.value < 500:
        pass
    os.kill(server.pid, signal.SIGKILL)
    server.join()
    with Ledger(url, key=KEY, per_client=Budget(queries=10**6), lease_rows=50) as ledger:
        charged = ledger.left("alice")[0].spent.queries
        ledger.verify()
    # One answer may be charged and not yet counted as given.
    assert answers.value <= charged <= answers.value + 1 + 50


def ask_in_child(ledger: Ledger, results) -> None:
    results.put(answered(ledger, "alice"))


def test_a_forked_child_gives_out_leases_of_its_own(opened) -> None:
    ledger = opened(per_client=Budget(queries=100), lease_rows=10)
    given = sum(1 for _ in range(20) if ledger.charge("alice", COST))
    results = FORK.Queue()
    child = FORK.Process(target=ask_in_child, args=(ledger, results))
    child.start()
    in_child = results.get(timeout=30)
    child.join()
    assert in_child <= 80
    assert given + in_child + answered(ledger, "alice") == 100


def charge_after(ledger: Ledger, closed, results) -> None:
    before = sum(1 for _ in range(5) if ledger.charge("alice", COST))
    results.put(before)
    closed.wait(30)
    results.put(sum(1 for _ in range(35) if ledger.charge("alice", COST)))


def test_a_child_goes_on_when_its_parent_closes_the_ledger(opened) -> None:
    ledger = opened(per_client=Budget(queries=100), lease_rows=1)
    given = sum(1 for _ in range(10) if ledger.charge("alice", COST))
    closed, results = FORK.Event(), FORK.Queue()
    child = FORK.Process(target=charge_after, args=(ledger, closed, results))
    child.start()
    given += results.get(timeout=30)
    ledger.close()
    closed.set()
    given += results.get(timeout=30)
    child.join()
    again = opened(per_client=Budget(queries=100), lease_rows=1)
    assert given == 50
    assert again.left("alice")[0].spent.queries >= 50
    again.verify()


def test_forks_while_other_threads_charge_start_in_order(opened) -> None:
    ledger = opened(per_client=Budget(queries=400), lease_rows=2)
    with ThreadPoolExecutor(2) as pool:
        parts = [pool.submit(answered, ledger, "alice", most=60) for _ in range(2)]
        results = FORK.Queue()
        children = [FORK.Process(target=ask_in_child, args=(ledger, results)) for _ in range(3)]
        for child in children:
            child.start()
        in_children = [results.get(timeout=60) for _ in children]
        given = sum(in_children) + sum(part.result() for part in parts)
    for child in children:
        child.join()
    given += answered(ledger, "alice")
    assert 400 - 2 * 3 <= given <= 400  # a child that ends loses its lease


class Deaf:
    """A store that commits, and whose acknowledgement is lost where it is told."""

    def __init__(self, store) -> None:
        self.store, self.url, self.is_deaf, self.turn = store, store.url, False, store.turn

    @contextmanager
    def session(self):
        with self.store.session() as session:
            yield session
        if self.is_deaf:
            self.is_deaf = False
            raise LedgerUnavailable("The acknowledgement was lost.")

    def reading(self):
        return self.store.reading()

    def close(self) -> None:
        self.store.close()


def deaf(ledger: Ledger) -> Deaf:
    store = Deaf(ledger._store)
    ledger._store = ledger._settler._store = store
    return store


def test_a_lost_acknowledgement_makes_no_answer_free_under_a_key(opened) -> None:
    ledger = opened(per_client=Budget(queries=300))
    store = deaf(ledger)
    ledger.charge("alice", COST)
    store.is_deaf = True
    with pytest.raises(LedgerUnavailable):
        ledger.charge("alice", COST, 70, key="r", content=b"x")
    again = ledger.charge("alice", COST, 70, key="r", content=b"x")
    assert again.repeated  # charged, then not acknowledged
    assert 1 + 70 + answered(ledger, "alice") <= 300
    ledger.verify()


def test_a_lost_acknowledgement_never_gives_a_lease_twice(opened) -> None:
    ledger = opened(per_client=Budget(queries=1000), max_clients=1)
    store = deaf(ledger)
    given = sum(1 for client in ("alice", "bob") if ledger.charge(client, COST))
    store.is_deaf = True
    with pytest.raises(LedgerUnavailable):
        ledger.charge("carol", COST)
    assert answered(ledger, "alice") + 1 <= 1000
    assert given == 2


def test_units_of_a_window_that_is_over_are_not_given_in_the_next(opened) -> None:
    clock = Clock()
    ledger = opened(per_client=Budget(queries=1000, window="day"), clock=clock)
    store = deaf(ledger)
    ledger.charge("alice", COST)
    session = store.session

    @contextmanager
    def over_midnight():
        with session() as opened_session:
            yield opened_session
            clock.now += DAY
            ledger._leases.now(clock())  # another thread looks at the clock meanwhile
        raise LedgerUnavailable("It failed.")

    store.session = over_midnight
    with pytest.raises(LedgerUnavailable):
        ledger.charge("alice", COST, 150)
    store.session = session
    assert answered(ledger, "alice") == 1000
    (left,) = ledger.left("alice")
    assert left.spent.queries == 1000


def test_requests_with_keys_get_what_leases_hold_too(opened) -> None:
    ledger = opened(per_client=Budget(queries=100), lease_rows=100)
    for _ in range(20):
        ledger.charge("alice", COST)  # and a quarter of the rest is leased
    charged = ledger.charge("alice", COST, 80, key="r", content=b"x")
    assert charged.rows == 80
    assert answered(ledger, "alice") == 0
    assert ledger.left("alice")[0].queries == 0


def test_a_key_buys_as_many_answers_of_the_same_cost_and_no_others(opened) -> None:
    ledger = opened(per_client=Budget(queries=2000))
    ledger.charge("alice", COST, key="k", content=b"x")
    for rows, cost in ((1000, COST), (1, PrivacyCost(bits=50.0))):
        with pytest.raises(ConfigError, match="a new key .* for a new request"):
            ledger.charge("alice", cost, rows, key="k", content=b"x")


def test_a_charge_that_came_too_late_is_not_made_or_kept_for_others(opened, monkeypatch) -> None:
    ledger = opened(per_client=Budget(queries=500), timeout_s=0.05)
    session, waiting = ledger._store.session, threading.Event()

    @contextmanager
    def slow():
        waiting.wait(10)
        with session() as opened_session:
            yield opened_session

    monkeypatch.setattr(ledger._store, "session", slow)
    for _ in range(5):
        with pytest.raises(LedgerUnavailable, match="did not answer"):
            ledger.charge("alice", COST, 50)
    ledger.timeout_s = 30
    waiting.set()
    assert answered(ledger, "alice") == 500


def test_costs_of_several_kinds_share_a_ledger_without_piling_up_leases(opened) -> None:
    ledger = opened(per_client=Budget(bits=1e6))
    for _ in range(300):
        ledger.charge("alice", Units(10**7, 0, 1))
        ledger.charge("alice", Units(0, 0, 1))
    other = opened(per_client=Budget(bits=1e6))
    assert 3000e6 <= other.left("alice")[0].spent.bits <= 3000e6 + 100 * 10**7


def test_a_ledger_that_was_put_back_under_a_server_stops_it(tmp_path) -> None:
    path = tmp_path / "l.db"
    settings = {"key": KEY, "per_client": Budget(queries=100), "lease_rows": 1}
    ledger = Ledger(f"sqlite:///{path}", **settings)
    ledger.charge("alice", COST, 10)
    path.unlink()
    with pytest.raises(LedgerUnavailable, match="removed or replaced"):
        ledger.charge("alice", COST, 10)
    Ledger(f"sqlite:///{path}", **settings).close()
    with pytest.raises(LedgerUnavailable, match="removed or replaced"):
        ledger.charge("alice", COST, 10)


def test_verifying_beside_a_server_that_charges_finds_nothing(opened) -> None:
    ledger = opened(lease_rows=1)
    reader = opened(lease_rows=1)
    with ThreadPoolExecutor(1) as pool:
        charging = pool.submit(answered, ledger, "alice", most=150)
        while not charging.done():
            reader.verify()


def test_a_closed_ledger_leaves_no_thread(opened) -> None:
    before = threading.active_count()
    for _ in range(5):
        ledger = opened()
        ledger.charge("alice", COST)
        ledger.close()
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.parametrize("client", ["\ud800", ["alice"], {"a": 1}])
def test_a_name_that_is_no_text_is_refused(opened, client) -> None:
    with pytest.raises(ConfigError, match="Expected client"):
        opened().charge(client, COST)


def test_a_clock_in_other_units_fails_no_other_client(opened) -> None:
    ledger = opened(per_client=Budget(queries=1, window="day"), clock=lambda: 1.8e15)
    ledger.charge("alice", COST)
    with pytest.raises(BudgetExceeded, match="s after 1970"):
        ledger.charge("alice", COST)
    with pytest.raises(ConfigError, match="cost >= 0"):
        ledger.charge("bob", Units(-1, 0, 1))


def test_a_pickled_ledger_carries_neither_leases_nor_its_key(tmp_path, opened, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="cannot be pickled"):
        pickle.dumps(opened())
    monkeypatch.setenv("SHIELDNET_LEDGER_KEY", KEY.hex())
    url = f"sqlite:///{tmp_path / 'p.db'}"
    ledger = Ledger(url, per_client=Budget(queries=100), lease_rows=10)
    given = sum(1 for _ in range(20) if ledger.charge("alice", COST))
    packed = pickle.dumps(ledger)
    assert KEY not in packed
    assert KEY.hex().encode() not in packed
    copy = pickle.loads(packed)  # noqa: S301 (our own bytes)
    assert given + answered(copy, "alice") + answered(ledger, "alice") == 100
    copy.close()
    ledger.close()


def test_no_store_is_no_answer(opened, monkeypatch) -> None:
    ledger = opened(per_client=Budget(queries=100), timeout_s=0.2)
    store = ledger._store
    waiting = threading.Event()

    def hang():
        waiting.wait(5)
        raise LedgerUnavailable("It is gone.")

    monkeypatch.setattr(store, "session", hang)
    with pytest.raises(LedgerUnavailable, match=r"did not answer within 0\.2 s"):
        ledger.charge("alice", COST)
    waiting.set()
    with pytest.raises(LedgerUnavailable, match="It is gone"):
        ledger.charge("alice", COST)
    monkeypatch.undo()
    assert answered(ledger, "alice") == 100  # a failed charge took nothing


def test_an_infinite_cost_fits_no_limit_and_is_recorded_as_infinite(opened) -> None:
    ledger = opened(per_client=(Budget(bits=10, window="day"), Budget(queries=5)))
    with pytest.raises(BudgetExceeded, match=r"1 answer \(inf bits\)"):
        ledger.charge("alice", PrivacyCost())
    free = opened(per_client=(Budget(bits=10, window="day"), Budget(queries=5)))
    assert free.left("alice")[1].queries == 5


@pytest.mark.parametrize(
    ("cost", "micro_bits", "nano_rho"),
    [
        (PrivacyCost(0.0, 0.0), 0, 0),
        (PrivacyCost(1.0, 1.0), 1_000_000, 500_000_000),
        (PrivacyCost(1e-12, 1e-12), 1, 1),
        (PrivacyCost(5e-324, 5e-324), 1, 1),
        (PrivacyCost(math.inf, math.inf), INFINITE, INFINITE),
        (PrivacyCost(1e300, 1e300), INFINITE, INFINITE),
    ],
)
def test_costs_are_rounded_up_to_whole_units(cost, micro_bits: int, nano_rho: int) -> None:
    assert units_of(cost) == (micro_bits, nano_rho, 1)


def test_limits_are_rounded_down() -> None:
    assert limits_of(1e-6 * (1 - 1e-16), None, None) == (0, INFINITE, INFINITE)
    assert limits_of(None, math.sqrt(2), 3) == (INFINITE, 1_000_000_000, 3)
    assert Budget(mu=1.0).limits.rho == 500_000_000


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 0},
        {"bits": math.nan},
        {"bits": math.inf},
        {"bits": "9"},
        {"mu": -1},
        {"queries": 0},
        {"queries": 1.5},
        {"queries": True},
        {"window": "month"},
        {"bits": 1e300},
    ],
)
def test_a_budget_that_limits_nothing_sensible_is_refused(settings) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Budget(**settings)


@pytest.mark.parametrize(
    "url", ["ledger.db", "sqlite://", "sqlite:///:memory:", "mysql://host/db", "", 7, None]
)
def test_an_address_of_another_form_is_refused(url) -> None:
    with pytest.raises(ConfigError, match="got"):
        Ledger(url, key=KEY)


def test_many_clients_wait_for_few_records(opened) -> None:
    """All clients together use up a lease of theirs no sooner than each its own."""
    ledger = opened(per_client=Budget(queries=10_000), in_all=Budget(queries=10**6))
    clients = [f"client {number}" for number in range(20)]
    for _ in range(5):
        for client in clients:
            ledger.charge(client, COST)
    groups = counted_groups(ledger)
    for _ in range(100):
        for client in clients:
            ledger.charge(client, COST)
    assert sum(groups) < 200  # asks for 2,000 charges
    left = ledger.left(clients[0])[0]
    assert left.spent.queries == 105


def counted_groups(ledger) -> list[int]:
    """Counts the charges of each group that is settled from now on."""
    groups, settle = [], ledger._settler.settle

    def counted(asks):
        groups.append(len(asks))
        return settle(asks)

    ledger._settler.settle = counted
    return groups


def test_with_leases_of_one_every_charge_is_a_record_of_its_own(opened) -> None:
    ledger = opened(per_client=Budget(queries=1000), lease_rows=1)
    groups = counted_groups(ledger)
    for _ in range(20):
        ledger.charge("alice", COST)
    assert sum(groups) >= 20


def test_what_is_written_while_a_ledger_is_verified_is_verified_too(opened, monkeypatch) -> None:
    monkeypatch.setattr("shieldnet.serving.stores.pages._PAGE", 3)
    ledger, other = (opened(per_client=Budget(queries=1000), lease_rows=1) for _ in range(2))
    for _ in range(5):
        ledger.charge("alice", COST)
    page, looked = Pages.page, []

    def slow(self, after):
        looked.append(after)
        if len(looked) < 4:
            ledger.charge("alice", COST)  # by the thread that reads the pages
            other.charge("bob", COST)  # and by another server
        return page(self, after)

    monkeypatch.setattr(Pages, "page", slow)
    before = ledger._settler.last_number
    checked = ledger.verify()
    assert checked.records >= before + 6
    assert len(looked) > 4
    assert checked == other.verify([checked.mac])


def test_no_writer_waits_for_one_who_reads(opened) -> None:
    reader, writer = opened(), opened()
    with reader._store.reading() as session:
        before = session.state()
        writer.charge("alice", COST)
        if not reader.url.startswith("redis"):  # there a look is a moment of its own
            assert session.state() == before
    reader.verify()


def test_a_ledger_whose_store_hangs_closes_and_keeps_its_charges(tmp_path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'l.db'}", per_client=Budget(queries=9), timeout_s=0.2)
    for _ in range(4):
        ledger.charge("alice", COST)
    may_go, session = threading.Event(), ledger._store.session

    def hangs():
        assert may_go.wait(30)
        return session()

    ledger._store.session = hangs
    with pytest.raises(LedgerUnavailable, match=r"did not answer within 0\.2 s"):
        ledger.close()
    ledger.close()
    with pytest.raises(LedgerUnavailable):
        ledger.charge("alice", COST)
    may_go.set()
