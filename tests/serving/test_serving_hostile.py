"""What hostile clients send to a server costs them more than it costs others."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest
from serving_parts import Served, infer
from starlette.requests import Request

from shieldnet.serving.app import bodies
from shieldnet.serving.app.limits import Limits
from shieldnet.serving.app.metrics import Metrics
from shieldnet.serving.app.refusals import Refused
from shieldnet.serving.app.running import server_of
from shieldnet.serving.app.service import Service

INFER, PREDICT = "/v2/models/m/infer", "/predict"


@pytest.fixture
def served(tmp_path) -> Served:
    return Served(tmp_path)


def test_no_address_leads_to_a_host_that_the_request_names(served) -> None:
    with served.client() as client:
        for path in (f"{PREDICT}/?q=secret", "/v2/?q=secret", "/v2/health/live/"):
            answer = client.get(path, headers={"Host": "evil.example"}, follow_redirects=False)
            assert answer.status_code == 404
            assert "location" not in answer.headers


def test_headers_are_read_by_a_parser_that_limits_them(served) -> None:
    config = server_of(served.app, Limits()).config
    config.load()
    assert config.http_protocol_class.__module__ == "uvicorn.protocols.http.h11_impl"
    assert config.ws_protocol_class is None


@pytest.mark.parametrize("ending", ["disconnects", "stops", "exceeds"])
def test_an_upload_that_was_aborted_leaves_memory_at_once(monkeypatch, ending) -> None:
    made: list[bytearray] = []

    class Kept(bytearray):
        def __init__(self) -> None:
            made.append(self)

    chunks = iter([b"x" * 100, b"x" * 100])

    async def receive():
        if (chunk := next(chunks, None)) is not None:
            return {"type": "http.request", "body": chunk, "more_body": True}
        if ending == "stops":
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    monkeypatch.setattr(bodies, "bytearray", Kept, raising=False)
    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    limits = Limits(timeout_s=0.01, max_body_bytes=150 if ending == "exceeds" else 1000)
    with pytest.raises(Refused):
        asyncio.run(bodies.read_body(request, limits))
    assert [len(body) for body in made] == [0]


def test_a_client_shuts_out_no_other_and_repeats_nothing_that_is_open(tmp_path) -> None:
    served = Served(tmp_path, max_requests=8)
    served.network.waits_for = threading.Event()
    bob = {"Authorization": f"Bearer {served.keys['bob']}"}
    named = {"Idempotency-Key": "one"}
    with served.client() as client, ThreadPoolExecutor(4) as pool, ExitStack() as at_the_end:
        at_the_end.callback(served.network.waits_for.set)

        def post(**headers: str):
            return client.post(INFER, json=infer(), headers=headers)

        waiting = [pool.submit(post, **named)]
        while served.guard.charged["alice"] < 2:
            assert not waiting[0].done()
        again = pool.submit(post, **named)  # at once: or else it waits for the model
        assert again.result(10).status_code == 503
        waiting += [pool.submit(post), pool.submit(post, **named, **bob)]
        while sum(served.guard.charged.values()) < 6:
            assert not any(one.done() for one in waiting)
        assert pool.submit(post).result(10).status_code == 503
        served.network.waits_for.set()
        assert [one.result(10).status_code for one in waiting] == [200] * 3
        assert post(**named).status_code == 200
    assert served.guard.charged == {"alice": 4, "bob": 2}


def test_a_request_holds_its_place_and_key_until_its_answer_leaves(tmp_path, monkeypatch) -> None:
    served = Served(tmp_path, max_requests=1, quantize_latency_s=0.01)
    answered, may_leave = threading.Event(), threading.Event()

    async def wait(start, step_s, *, clock):
        answered.set()
        while not may_leave.is_set():
            await asyncio.sleep(0.001)

    bob = {"Authorization": f"Bearer {served.keys['bob']}"}
    with served.client() as client, ThreadPoolExecutor(2) as pool, ExitStack() as at_the_end:
        at_the_end.callback(may_leave.set)
        monkeypatch.setattr("shieldnet.serving.app.telling.until_next", wait)
        named = {"Idempotency-Key": "one"}
        first = pool.submit(client.post, INFER, json=infer(), headers=named)
        assert answered.wait(10)
        assert served.network.asked  # the model is done, which no place shows
        answered.clear()
        probe = pool.submit(client.get, "/budget", headers=bob)
        assert answered.wait(10)
        may_leave.set()
        assert probe.result(10).status_code == 503
        assert first.result(10).status_code == 200
        assert client.get("/budget", headers=bob).status_code == 200


def test_a_charge_that_comes_too_late_is_said_to_be_possible(tmp_path) -> None:
    served, may_go = Served(tmp_path, timeout_s=0.05), threading.Event()
    charge = served.guard.charge

    def late(*args, **more):
        assert may_go.wait(30)
        return charge(*args, **more)

    served.guard.charge = late
    with served.client() as client:
        answer = client.post(INFER, json=infer())
        may_go.set()
    assert answer.status_code == 503
    assert "may have been charged" in answer.json()["error"]
    assert not served.network.asked


def test_twelve_greedy_clients_leave_places_for_others(served) -> None:
    service = Service(served.guard, served.model, Metrics())
    service.start()
    with ExitStack() as held:
        taken = {}
        for client in map(str, range(12)):
            taken[client] = 0
            with suppress(Refused):
                while True:
                    held.enter_context(service.place(client, None))
                    taken[client] += 1
        assert list(taken.values())[:4] == [64, 48, 36, 27]
        assert all(taken.values())
        held.enter_context(service.place("another", None))
    assert not service._served
    service.close()


def test_a_server_whose_ledger_hangs_ends(tmp_path) -> None:
    served, may_go = Served(tmp_path, timeout_s=0.05), threading.Event()

    def hangs(*args, **more):
        assert may_go.wait(30)

    served.guard.charge = served.guard.left = served.guard.close = hangs
    served.guard.require_writable = hangs
    with served.client() as client:
        assert client.post(INFER, json=infer()).status_code == 503
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/budget").status_code == 503
    assert not may_go.is_set()  # the server ended before
    may_go.set()


def test_a_server_whose_model_hangs_is_not_ready_charges_nothing_and_ends(tmp_path) -> None:
    served = Served(tmp_path, timeout_s=0.05)
    served.network.waits_for = threading.Event()
    with served.client() as client:
        assert client.post(INFER, json=infer()).status_code == 503
        for _ in range(1000):
            if client.get("/v2/health/ready").status_code == 503:
                break
            time.sleep(0.01)
        assert client.get("/v2/models/m/ready").status_code == 503
        assert "Nothing was charged" in client.post(INFER, json=infer()).text
    assert served.guard.is_closed
    assert served.guard.charged == {"alice": 2}
    served.network.waits_for.set()
