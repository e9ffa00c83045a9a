"""Laws of charging at the edge."""

import asyncio
import json

import pytest

from shieldnet.core.errors import ConfigError, LedgerUnavailable
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.serving import Budget, BudgetMiddleware, Ledger, current_client
from shieldnet.serving.middleware import rows_of_json, rows_of_protocol

COST = PrivacyCost(bits=3.0)


class Server:
    """An application that answers with its client and the body it got, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, scope, receive, send) -> None:
        self.calls += 1
        if scope["type"] == "http":
            message = await receive()
            said = json.dumps([current_client(), len(message["body"])]).encode()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": said})


@pytest.fixture
def edge(tmp_path):
    with Ledger(f"sqlite:///{tmp_path / 'l.db'}", per_client=Budget(queries=5)) as ledger:
        yield BudgetMiddleware(
            Server(),
            charge=lambda name, rows: ledger.charge(name, COST, rows),
            client=lambda scope: dict(scope["headers"]).get(b"x-user", b"").decode() or None,
            rows=rows_of_json,
            free=("/health",),
            max_bytes=1000,
        )


def asked(edge, body, *, user="alice", path="/predict", kind="http", query=b"", more=()):
    """Sends one request in pieces of 100 bytes, and returns its status, headers and body."""
    sent = []
    parts = [body[at : at + 100] for at in range(0, len(body), 100)] or [b""]

    async def receive():
        part = parts.pop(0) if parts else None
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message) -> None:
        sent.append(message)

    headers = [(b"x-user", user.encode())] if user else []
    scope = {"type": kind, "path": path, "query_string": query, "headers": [*headers, *more]}
    asyncio.run(edge(scope, receive, send))
    if kind != "http":
        return sent
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


ONE = (b"Idempotency-Key", b"one")


@pytest.fixture
def named(tmp_path):
    """An edge that charges repeats of a named request once."""
    with Ledger(f"sqlite:///{tmp_path / 'l.db'}", per_client=Budget(queries=9)) as ledger:
        yield BudgetMiddleware(
            Server(),
            charge=lambda name, rows, **more: ledger.charge(name, COST, rows, **more),
            client=lambda scope: dict(scope["headers"])[b"x-user"].decode(),
            rows=rows_of_json,
            request_id="idempotency-key",
            reads=("X-Scale",),
        )
        assert ledger.left("alice")[0].queries == 0


def test_a_request_with_a_name_is_charged_once(named) -> None:
    trace = (b"traceparent", b"7")
    assert asked(named, rows(3), more=[ONE])[0] == 200
    assert asked(named, rows(3), more=[ONE, trace])[0] == 200
    assert asked(named, rows(3))[0] == 200  # of no name
    assert asked(named, rows(3), more=[(b"idempotency-key", b"two")])[0] == 200
    assert asked(named, rows(1), more=[(b"idempotency-key", b"three")])[0] == 429
    assert asked(named, rows(3), more=[ONE])[0] == 200
    assert asked(named, rows(3), user="bob", more=[ONE])[0] == 200
    assert named.app.calls == 6


@pytest.mark.parametrize(
    "other",
    [
        {"body": b" " + json.dumps({"inputs": [[0.0] * 4] * 3}).encode()},
        {"path": "/other"},
        {"query": b"a=1"},
        {"more": [ONE, (b"x-scale", b"2")]},
    ],
)
def test_the_name_of_a_request_buys_no_answer_to_another(named, other) -> None:
    assert asked(named, rows(3), more=[ONE])[0] == 200
    status, _, body = asked(named, **{"body": rows(3), "more": [ONE], **other})
    assert (status, body) == (422, b'{"error":"request id was used for another request"}')
    assert named.app.calls == 1
    assert asked(named, rows(6))[0] == 200  # and nothing else was charged


@pytest.mark.parametrize("names", [[b""], [b"x" * 201], [b"\xe9"], [b"a\n"], [b"a", b"a"]])
def test_a_name_that_is_none_or_several_is_refused(named, names) -> None:
    more = [(b"idempotency-key", name) for name in names]
    assert asked(named, rows(3), more=more)[0] == 400
    assert asked(named, rows(9))[0] == 200


def rows(count: int) -> bytes:
    return json.dumps({"inputs": [[0.0] * 4] * count}).encode()


def test_requests_are_charged_until_the_budget_is_spent(edge) -> None:
    assert asked(edge, rows(3)) == (200, {}, json.dumps(["alice", len(rows(3))]).encode())
    status, headers, body = asked(edge, rows(3))
    assert (status, body) == (429, b'{"error":"budget exceeded"}')
    assert b"retry-after" not in headers  # it never renews
    assert asked(edge, rows(2))[0] == 200
    assert asked(edge, rows(1))[0] == 429
    assert asked(edge, rows(1), user="bob")[0] == 200
    assert edge.app.calls == 3


@pytest.mark.parametrize("path", ["/predict", "/health/", "//health", "/HEALTH", "/anything", "/"])
def test_every_path_is_charged_but_the_free_ones(edge, path: str) -> None:
    assert asked(edge, rows(5), path=path)[0] == 200
    assert asked(edge, rows(1), path=path)[0] == 429
    assert asked(edge, b"", path="/health")[0] == 200


@pytest.mark.parametrize(
    ("body", "user", "status"),
    [
        (rows(1), "", 401),
        (b"x" * 1001, "alice", 413),
        (b"", "alice", 400),
        (b"\xff", "alice", 400),
        (b"[1]", "alice", 400),
        (b'{"inputs": []}', "alice", 400),
        (b'{"inputs": 3}', "alice", 400),
        (b'{"inputs": [1], "instances": [1]}', "alice", 400),
        (b'{"inputs": [1, 2], "inputs": [1]}', "alice", 400),
        (b"[" * 900, "alice", 400),
        (rows(1), "a" * 2000, 503),
    ],
)
def test_what_cannot_be_charged_is_refused(edge, body, user: str, status: int) -> None:
    assert asked(edge, body, user=user)[0] == status
    assert edge.app.calls == 0
    assert asked(edge, rows(5))[0] == 200  # and nothing was charged


def test_a_websocket_is_closed_and_the_start_of_the_server_passes(edge) -> None:
    assert asked(edge, b"", kind="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert edge.app.calls == 0
    asked(edge, b"", kind="lifespan")
    assert edge.app.calls == 1


def test_no_ledger_is_no_answer_and_says_nothing_of_why(edge) -> None:
    def charge(name: str, rows: int):
        raise LedgerUnavailable("postgresql://secret")

    edge.charge = charge
    status, _, body = asked(edge, rows(1))
    assert (status, body) == (503, b'{"error":"unavailable"}')


def test_a_budget_that_renews_says_when(tmp_path) -> None:
    with Ledger(
        f"sqlite:///{tmp_path / 'd.db'}", per_client=Budget(queries=1, window="day")
    ) as led:
        edge = BudgetMiddleware(
            Server(),
            charge=lambda name, n: led.charge(name, COST, n),
            client=lambda scope: "alice",
            rows=rows_of_json,
        )
        assert asked(edge, rows(1))[0] == 200
        status, headers, _ = asked(edge, rows(1))
        assert status == 429
        assert 0 < int(headers[b"retry-after"]) <= 86_400


def test_rows_that_call_themselves_tensors_are_counted_one_by_one() -> None:
    assert rows_of_json(json.dumps({"inputs": [{"x": 1, "shape": [1]}] * 1000}).encode()) == 1000
    assert rows_of_json(b'{"instances": [[1], [2]]}') == 2


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [
        ([{"shape": [3, 1], "data": [1, 2, 3]}, {"shape": [2], "data": [[1], [2]]}], 3),
        ([{"shape": [1], "data": [1, 2, 3]}], None),
        ([{"shape": [2.5], "data": [1, 2]}], None),
        ([{"shape": [], "data": [1]}], None),
        ([{"shape": [-1, -2], "data": [1, 2]}], None),
        ([{"shape": [2]}], None),
        ([3], None),
        ([], None),
    ],
)
def test_a_protocol_body_counts_its_longest_tensor(inputs, rows) -> None:
    body = json.dumps({"inputs": inputs}).encode()
    if rows is not None:
        assert rows_of_protocol(body) == rows
        return
    with pytest.raises(ValueError, match="Expected"):
        rows_of_protocol(body)


def test_nesting_without_end_and_other_protocols_are_refused(edge) -> None:
    edge.max_bytes = 10**6
    assert asked(edge, b"[" * 100_000)[0] == 400
    with pytest.raises(ConfigError, match="not charged"):
        asked(edge, rows(1), kind="webtransport")
    assert edge.app.calls == 0


def test_one_path_as_a_word_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\('/health',\)"):
        BudgetMiddleware(Server(), charge=print, client=print, rows=len, free="/health")
