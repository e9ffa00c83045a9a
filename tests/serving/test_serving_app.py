"""The app charges before it asks, says nothing beyond the answer, and fails closed."""

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from prometheus_client import generate_latest
from serving_parts import ROWS, Counting, Fake, Served, infer
from torch import nn
from tritonclient.http import InferenceServerClient, InferInput

import shieldnet as sn
from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.serving.app.keys import ApiKeys
from shieldnet.serving.app.limits import Limits
from shieldnet.serving.app.protocol import BINARY_HEADER
from shieldnet.serving.app.served import ServedModel
from shieldnet.serving.app.web import make_app
from shieldnet.serving.latency import left_s
from shieldnet.shipping.description import TensorFacts

INFER, PREDICT = "/v2/models/m/infer", "/predict"


@pytest.fixture
def served(tmp_path) -> Served:
    return Served(tmp_path)


@pytest.fixture
def client(served):
    with served.client() as client:
        yield client


def test_an_answer_is_the_shields_own_and_is_charged(served, client) -> None:
    wanted = served.shield(torch.tensor(ROWS)).tolist()
    assert client.post(PREDICT, json={"inputs": ROWS}).json() == {"outputs": wanted}
    answer = client.post(INFER, json=infer(id="7")).json()
    (output,) = answer.pop("outputs")
    assert answer == {"model_name": "m", "model_version": "1", "id": "7"}
    assert torch.tensor(output["data"]).reshape(output["shape"]).tolist() == wanted
    assert served.guard.charged == {"alice": 4}
    assert client.post("/v2/models/m/versions/1/infer", json=infer()).status_code == 200


def test_what_the_server_says_of_itself_is_what_the_protocol_asks(client) -> None:
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/m/ready").json() == {"name": "m", "ready": True}
    metadata = client.get("/v2/models/m").json()
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 6]}]
    assert metadata["outputs"] == [{"name": "answer", "datatype": "FP32", "shape": [-1, 3]}]


@pytest.mark.parametrize("key", [None, "", "Bearer", "Bearer wrong", "Basic YTpi", "KEY"])
def test_nobody_without_a_known_key_is_answered(served, key) -> None:
    given = (key or "").replace("KEY", served.keys["bob"])
    served.headers = {} if key is None else {"Authorization": given}
    with served.client() as client:
        answers = [client.post(path, json=infer()) for path in (INFER, PREDICT)]
        answers += [client.get(path) for path in ("/v2", "/v2/models/m", "/v2/models/unknown")]
        bodies = {(answer.status_code, answer.text) for answer in answers}
        assert [status for status, _ in bodies] == [401]
        assert answers[0].headers["www-authenticate"] == "Bearer"
        assert client.get("/v2/health/ready").status_code == 200
    assert not served.guard.charged
    assert not served.network.asked


def test_both_headers_carry_a_key_and_its_client_is_charged(served) -> None:
    served.headers = {"X-API-Key": served.keys["bob"]}
    with served.client() as client:
        assert client.post(PREDICT, json={"inputs": ROWS}).status_code == 200
    assert served.guard.charged == {"bob": 2}


def test_a_spent_budget_is_refused_before_the_model_is_asked(tmp_path) -> None:
    served = Served(tmp_path, rows=3)
    with served.client() as client:
        assert client.post(PREDICT, json={"inputs": ROWS}).status_code == 200
        refused = client.post(PREDICT, json={"inputs": ROWS})
        assert refused.status_code == 429
        assert "secret" not in refused.text
        assert "retry-after" not in refused.headers
        served.guard.renews_at = 2**40
        assert int(client.post(INFER, json=infer()).headers["retry-after"]) > 2**39
        assert client.post(PREDICT, json={"inputs": ROWS[:1]}).status_code == 200
    assert served.network.asked == [2, 1]
    assert served.guard.charged == {"alice": 3}


def test_a_client_sees_what_it_has_left_and_nothing_of_others(tmp_path) -> None:
    served = Served(tmp_path, rows=9)
    served.guard.renews_at = 2**40
    nothing = {"bits": None, "mu": None}
    with served.client() as client:
        client.post(PREDICT, json={"inputs": ROWS})
        bob = {"Authorization": f"Bearer {served.keys['bob']}"}
        for headers, left in (({}, 7), (bob, 9)):
            answer = client.get("/budget", headers=headers)
            assert answer.status_code == 200
            assert answer.json() == {
                "budgets": [
                    {
                        "window": "total",
                        "renews_at": 2**40,
                        "limits": {**nothing, "queries": 9},
                        "left": {**nothing, "queries": left},
                    }
                ]
            }
            assert client.get("/budget?client=bob", headers=headers).json() == answer.json()
        assert client.get("/budget", headers={"Authorization": "Bearer no"}).status_code == 401
        served.guard.is_down = True
        assert client.get("/budget").status_code == 503
    assert served.guard.charged == {"alice": 2}


def test_what_is_left_takes_a_place_as_every_request_does(tmp_path) -> None:
    served = Served(tmp_path, max_requests=2)
    served.network.waits_for = threading.Event()
    with served.client() as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, INFER, json=infer())
        while not served.guard.charged:
            assert not waiting.done()
        assert client.get("/budget").status_code == 503
        served.network.waits_for.set()
        assert waiting.result().status_code == 200
        assert client.get("/budget").status_code == 200


def test_without_a_ledger_there_is_no_answer_and_no_readiness(tmp_path) -> None:
    served = Served(tmp_path)
    served.guard.is_down = True
    with served.client() as client:
        assert client.post(INFER, json=infer()).status_code == 503
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/models/m/ready").json() == {"name": "m", "ready": False}
        assert client.get("/v2/health/live").status_code == 200
    assert not served.network.asked


def test_a_repeated_request_is_charged_once_and_its_key_buys_nothing_else(served, client) -> None:
    key = {"Idempotency-Key": "one"}
    first = client.post(INFER, json=infer(), headers=key)
    again = client.post(PREDICT, json={"inputs": ROWS}, headers=key)
    (output,) = first.json()["outputs"]
    assert [number for row in again.json()["outputs"] for number in row] == output["data"]
    assert served.guard.charged == {"alice": 2}
    other = client.post(INFER, json=infer(ROWS[::-1]), headers=key)
    assert other.status_code == 422
    assert served.network.asked == [2, 2]
    bobs = {**key, "Authorization": f"Bearer {served.keys['bob']}"}
    assert client.post(INFER, json=infer(ROWS[::-1]), headers=bobs).status_code == 200
    assert served.guard.charged == {"alice": 2, "bob": 2}
    for wrong in ("", "x" * 201, b"\xe9"):
        bad = client.post(INFER, json=infer(), headers={"Idempotency-Key": wrong})
        assert bad.status_code == 400


def test_the_id_of_a_request_saves_no_charge(served, client) -> None:
    for _ in range(2):
        client.post(INFER, json=infer(id="same"))
    assert served.guard.charged == {"alice": 4}


@pytest.mark.parametrize(
    ("path", "send", "status"),
    [
        (INFER, {"content": b"x" * 20_000}, 413),
        (INFER, {"content": iter([b"x" * 9_000, b"x" * 9_000])}, 413),
        (INFER, {"json": infer([[0.0] * 6] * 65)}, 413),
        (INFER, {"content": b"", "headers": {"content-type": "text/xml"}}, 415),
        (INFER, {"content": b"", "headers": {"content-encoding": "gzip"}}, 415),
        (PREDICT, {"content": b"", "headers": {"content-type": "application/octet-stream"}}, 415),
        (INFER, {"content": b"{"}, 400),
        (PREDICT, {"json": {"inputs": [[1.0]]}}, 400),
        ("/v2/models/other/infer", {"json": infer()}, 404),
        ("/v2/models/m/versions/2/infer", {"json": infer()}, 404),
        ("/v2/models/m", {"json": infer()}, 405),
    ],
)
def test_a_request_beyond_the_limits_costs_nothing(tmp_path, path, send, status) -> None:
    served = Served(tmp_path, max_body_bytes=10_000)
    with served.client() as client:
        refused = client.post(path, **send)
    assert refused.status_code == status
    assert list(refused.json()) == ["error"]
    assert not served.guard.charged
    assert not served.network.asked


def test_an_answer_that_may_not_be_released_stays_charged(served, client) -> None:
    nan = InferInput("x", [1, 6], "FP32").set_data_from_numpy(np.full((1, 6), np.nan, np.float32))
    body, length = InferenceServerClient.generate_request_body([nan])
    refused = client.post(INFER, content=body, headers={BINARY_HEADER: str(length)})
    assert refused.status_code == 422
    assert refused.json() == {
        "error": "There is no answer to these inputs that may be released. The request was charged."
    }
    assert served.guard.charged == {"alice": 1}


class Short(Counting):
    """Answers with one row, whatever it was asked, once it is served."""

    is_short = False

    def forward(self, x):
        return super().forward(x)[: 1 if self.is_short else len(x)]


def test_an_answer_of_another_number_of_rows_is_not_given(tmp_path) -> None:
    model = Short()
    served = Served(tmp_path, model)
    model.is_short = True
    with served.client() as client:
        assert client.post(INFER, json=infer()).status_code == 422
        assert client.post(INFER, json=infer(ROWS[:1])).status_code == 200


class Broken(Counting):
    """Fails with what it was asked in the message, once it is served."""

    is_broken = False

    def forward(self, x):
        if self.is_broken:
            raise RuntimeError(f"secret {x.tolist()}")
        return super().forward(x)


def test_a_failure_says_nothing_and_stays_charged(tmp_path, caplog) -> None:
    model = Broken()
    served = Served(tmp_path, model)
    model.is_broken = True
    with caplog.at_level(logging.DEBUG), served.client() as client:
        failed = client.post(INFER, json=infer())
    assert failed.status_code == 500
    assert failed.json() == {"error": "The server failed. What was charged stays charged."}
    assert served.guard.charged == {"alice": 2}
    assert "secret" not in caplog.text
    assert json.loads(caplog.messages[-1])["error"] == "RuntimeError"


def test_an_error_of_the_ledger_that_is_not_known_gives_no_answer(served, client) -> None:
    def fails(*args, **more):
        raise OSError("disk")

    served.guard.charge = fails
    assert client.post(INFER, json=infer()).status_code == 500
    assert not served.network.asked


def test_an_answer_that_takes_too_long_is_not_given_and_stays_charged(tmp_path) -> None:
    served = Served(tmp_path, timeout_s=0.05)
    served.network.waits_for = threading.Event()
    with served.client() as client:
        late = client.post(INFER, json=infer())
        served.network.waits_for.set()
    assert late.status_code == 503
    assert "took too long" in late.text
    assert served.guard.charged == {"alice": 2}


def test_too_many_requests_at_once_are_refused_before_they_are_charged(tmp_path) -> None:
    served = Served(tmp_path, max_requests=2)
    served.network.waits_for = threading.Event()
    with served.client() as client, ThreadPoolExecutor(2) as pool:
        bob = {"Authorization": f"Bearer {served.keys['bob']}"}
        waiting = [pool.submit(client.post, INFER, json=infer(), headers=one) for one in ({}, bob)]
        while sum(served.guard.charged.values()) < 4:
            assert not any(one.done() for one in waiting)
        refused = client.post(INFER, json=infer())
        served.network.waits_for.set()
        assert [one.result().status_code for one in waiting] == [200, 200]
    assert refused.status_code == 503
    assert served.guard.charged == {"alice": 2, "bob": 2}


def test_a_request_that_may_be_repeated_is_answered_by_itself(served, client) -> None:
    served.network.waits_for = threading.Event()
    with ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(client.post, INFER, json=infer())]
        for key in ("1", "2", None, None):
            headers = {} if key is None else {"Idempotency-Key": key}
            waiting.append(pool.submit(client.post, INFER, json=infer(), headers=headers))
        while sum(served.guard.charged.values()) < 10:
            assert not any(one.done() for one in waiting)
        served.network.waits_for.set()
        assert {one.result().status_code for one in waiting} == {200}
    assert served.network.asked.count(2) >= 2
    assert sum(served.network.asked) == 10


def test_a_line_and_numbers_of_a_request_name_nobody_and_nothing(tmp_path, caplog) -> None:
    served = Served(tmp_path, rows=4)
    with caplog.at_level(logging.INFO, "shieldnet.serving"), served.client() as client:
        client.post(INFER, json=infer(id="private"))
        client.post(PREDICT, json={"inputs": ROWS}, headers={"Idempotency-Key": "private"})
        client.post(PREDICT, json={"inputs": ROWS})
        client.get("/private?private=1")
    lines = [json.loads(line) for line in caplog.messages]
    routes = ["/v2/models/{name}/infer", PREDICT, PREDICT, "other"]
    assert [line["route"] for line in lines] == routes
    assert [line.get("reason") for line in lines] == [None, None, "budget", "address"]
    names = {"time", "request", "route", "status", "seconds", "reason"}
    assert {name for line in lines for name in line} == names
    numbers = generate_latest(served.app.state.metrics.registry).decode()
    for word in ("alice", "private", *served.keys.values()):
        assert word not in numbers
        assert word not in caplog.text
    assert "shieldnet_charges_total 2.0" in numbers
    assert "shieldnet_charged_rows_total 4.0" in numbers
    assert 'shieldnet_refusals_total{reason="budget"} 1.0' in numbers
    assert 'shieldnet_latency_seconds_count{route="/predict"} 2.0' in numbers
    assert "shieldnet_budget_left_ratio_sum 0.5" in numbers


@pytest.mark.parametrize(("passed", "sent"), [(0.0, 0.0), (0.01, 0.25), (0.25, 0.25), (0.3, 0.5)])
def test_answers_leave_at_multiples_of_a_time_after_the_body(
    tmp_path, monkeypatch, passed, sent
) -> None:
    slept: list[float] = []
    clock = iter([90.1, 100.0 + passed, 101.0])  # the body came much later than its headers

    async def wait(start, step_s, *, clock):
        slept.append(left_s(clock() - start, step_s))

    served = Served(tmp_path, quantize_latency_s=0.25)
    with served.client() as client:
        monkeypatch.setattr("shieldnet.serving.app.bodies.monotonic", lambda: 100.0)
        monkeypatch.setattr("shieldnet.serving.app.telling.monotonic", lambda: next(clock))
        monkeypatch.setattr("shieldnet.serving.app.telling.until_next", wait)
        status = client.post(PREDICT, json={"inputs": [[]]}).status_code
        monkeypatch.undo()
    assert status == 400
    assert [round(passed + one, 6) for one in slept] == [sent]


def test_the_end_of_the_app_closes_the_ledger(served) -> None:
    with served.client():
        assert not served.guard.is_closed
    assert served.guard.is_closed


def test_a_guard_whose_settings_would_be_ignored_is_refused(served) -> None:
    known = ApiKeys({"alice": (f"sha256:{'0' * 64}",)})
    other = Fake(sn.harden(served.network.eval(), extent=sn.Extent(3)))
    with pytest.raises(ConfigError, match="guard of the shield that is served"):
        make_app(other, served.model, known)


class Pair(nn.Module):
    def forward(self, text, image):
        topic = text.sum(1, keepdim=True) * torch.ones(3)
        return {"topic": topic, "intent": image.float() @ torch.ones(4, 2)}


def test_a_model_of_several_heads_has_inputs_and_outputs_by_name(tmp_path) -> None:
    kinds = {"topic": "logits", "intent": "logits"}
    extent = sn.Extent(3, fields={"intent": sn.Extent(2)})
    shield = sn.Shield(
        Pair().eval(), sn.Label(), outputs=kinds, also={"intent": (sn.Label(),)}, extent=extent
    )
    inputs = (TensorFacts("text", (None, 2), "float32"), TensorFacts("image", (None, 4), "uint8"))
    served = Served(tmp_path, model=nn.Identity(), shield=shield, inputs=inputs)
    given = {"image": [[1, 2, 3, 4]], "text": [[0.5, 0.5]]}
    with served.client() as client:
        answer = client.post(PREDICT, json={"inputs": given}).json()["outputs"]
        assert set(answer) == {"topic", "intent"}
        metadata = client.get("/v2/models/m").json()
        assert [one["name"] for one in metadata["outputs"]] == ["topic", "intent"]
        assert {one["datatype"] for one in metadata["outputs"]} == {"FP32"}
        body = {
            "inputs": [
                {"name": "image", "shape": [1, 4], "datatype": "UINT8", "data": [1, 2, 3, 4]},
                {"name": "text", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 0.5]},
            ],
            "outputs": [{"name": "intent"}],
        }
        (output,) = client.post(INFER, json=body).json()["outputs"]
        assert output == {
            "name": "intent",
            "shape": [1, 2],
            "datatype": "FP32",
            "data": answer["intent"][0],
        }


class Mixing(nn.Module):
    def forward(self, x):
        return x[:, :3] - x[:, :3].mean(0)


def test_a_model_that_cannot_be_served_is_refused_before_it_is() -> None:
    extent = sn.Extent(3)
    good = sn.harden(Counting().eval(), extent=extent)
    for inputs, words in [
        ((), "What the model takes is not known"),
        ((TensorFacts("x", (2, 6), "float32"),), "rows of any number"),
        ((TensorFacts("x", (None, 6), "complex64"),), "Expected each input as numbers"),
        ((TensorFacts("x", (None, 7), "float32"),), "The model fails on 64 rows"),
    ]:
        with pytest.raises(ConfigError, match=words):
            ServedModel(good, inputs=inputs)
    with pytest.raises(ConfigError, match="Expected name as"):
        ServedModel(good, name="a/b", example=torch.rand(2, 6))
    with pytest.raises(AnswerError):
        ServedModel(sn.harden(Mixing().eval(), extent=extent), example=torch.rand(8, 6))
    assert ServedModel(good, example=torch.rand(2, 6)).inputs[0].name == "x"


class Tokens(nn.Module):
    """Reads tokens as models of transformers do."""

    def __init__(self, table: object) -> None:
        super().__init__()
        self.table = table
        self.config = SimpleNamespace(type_vocab_size=2)

    def get_input_embeddings(self):
        if self.table is None:
            raise NotImplementedError
        return self.table

    def forward(self, input_ids, token_type_ids):
        return input_ids[:, :3].float() + token_type_ids[:, :3]


class Wider(nn.Embedding):
    """Has rows beside those that it counts."""


@pytest.mark.parametrize(
    ("table", "ids"),
    [
        (nn.Embedding(20, 4), {"input_ids": 20, "token_type_ids": 2}),
        (Wider(20, 4), {"token_type_ids": 2}),
        (None, {"token_type_ids": 2}),
    ],
)
def test_only_a_plain_table_says_which_tokens_there_are(table, ids) -> None:
    words = {name: torch.ones(2, 4, dtype=torch.int64) for name in ("input_ids", "token_type_ids")}
    shield = sn.harden(Tokens(table).eval(), extent=sn.Extent(3))
    assert ServedModel(shield, example=words).form.ids == ids


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("max_rows", 0),
        ("max_body_bytes", 1.5),
        ("max_requests", True),
        ("timeout_s", 0.0),
        ("batch_wait_s", -1.0),
        ("batch_wait_s", 31.0),
        ("quantize_latency_s", 0.0),
    ],
)
def test_limits_that_make_no_sense_are_refused(name, wrong) -> None:
    with pytest.raises(ConfigError, match=name):
        Limits(**{name: wrong})
