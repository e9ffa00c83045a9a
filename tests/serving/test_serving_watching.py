"""A watch looks at every request to the server, as it does at calls of a guard."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from prometheus_client import generate_latest
from serving_parts import Counting, Served, X
from torch import nn

import shieldnet as sn
from shieldnet.core.errors import ConfigError, DataError
from shieldnet.serving import Watch, WatchPolicy
from shieldnet.serving.app.limits import Limits
from shieldnet.serving.app.served import ServedModel
from shieldnet.serving.app.watching import watch_of
from shieldnet.shipping.description import TensorFacts

PREDICT, INFER = "/predict", "/v2/models/m/infer"
POLICY = WatchPolicy(log_above=0.1, harder_above=0.2, refuse_above=0.9, harder="strict")


def natural(rows: int = 400) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(0))


def crafted(rows: int) -> list[list[float]]:
    return (100 + natural()[:rows]).tolist()


@pytest.fixture
def shield() -> sn.Shield:
    return sn.harden(Counting().eval(), extent=sn.Extent(3), example=natural()[:8])


@pytest.fixture
def served(tmp_path, shield) -> Served:
    watch = Watch.of(shield, natural(), POLICY)
    return Served(tmp_path, shield.model, shield=shield, watch=watch)


def ask(client, rows, **headers):
    return client.post(PREDICT, json={"inputs": rows}, headers=headers)


def test_crafted_queries_get_a_harder_shield_and_then_a_refusal_others_do_not(served) -> None:
    strict = sn.harden(served.network, "strict", extent=sn.Extent(3))
    bob = {"Authorization": f"Bearer {served.keys['bob']}"}
    rows = natural()[:5]
    with served.client() as client:
        for part in natural()[:100].split(20):
            assert ask(client, part.tolist(), **bob).status_code == 200
        ask(client, crafted(20))
        answer = ask(client, rows.tolist())
        assert answer.json()["outputs"] == strict(rows).tolist()
        assert answer.json()["outputs"] != served.shield(rows).tolist()
        for part in (100 + natural()[100:280]).split(60):
            assert ask(client, part.tolist()).status_code == 200
        before = dict(served.guard.charged)
        asked = len(served.network.asked)
        refused = ask(client, rows.tolist())
        assert refused.status_code == 429
        assert refused.json() == {
            "error": "The queries of this client are refused for a time. Nothing was charged."
        }
        assert 3500 < int(refused.headers["retry-after"]) <= 3601
        assert served.guard.charged == before == {"alice": 205, "bob": 100}
        assert len(served.network.asked) == asked
        assert ask(client, rows.tolist(), **bob).json()["outputs"] == served.shield(rows).tolist()
    numbers = generate_latest(served.app.state.metrics.registry).decode()
    assert 'shieldnet_watched_total{shield="own"} 7.0' in numbers
    assert 'shieldnet_watched_total{shield="harder"} 4.0' in numbers
    assert 'shieldnet_refusals_total{reason="queries"} 1.0' in numbers
    assert "shieldnet_suspicion_count 11.0" in numbers


def test_a_key_of_a_request_buys_no_second_answer_of_the_harder_shield(served) -> None:
    rows, key = natural()[:5].tolist(), {"Idempotency-Key": "one"}
    with served.client() as client:
        own = ask(client, rows, **key).json()
        assert ask(client, rows, **key).json() == own
        ask(client, crafted(20))
        for count in (1, 2):
            assert ask(client, rows, **key).json() != own
            assert served.guard.charged == {"alice": 25 + 5 * count}


def test_requests_of_one_client_at_once_are_judged_one_after_the_other(served) -> None:
    served.network.waits_for = threading.Event()
    bob = {"Authorization": f"Bearer {served.keys['bob']}"}
    with served.client() as client, ThreadPoolExecutor(5) as pool:
        parts = (100 + natural()[:240]).split(60)
        waiting = [pool.submit(ask, client, part.tolist()) for part in parts]
        other = pool.submit(ask, client, natural()[:5].tolist(), **bob)
        while len(served.guard.charged) < 2:
            assert not any(one.done() for one in waiting)
        assert served.guard.charged == {"alice": 60, "bob": 5}
        served.network.waits_for.set()
        statuses = [one.result().status_code for one in waiting]
        assert other.result().status_code == 200
    assert served.guard.charged == {"alice": 60 * statuses.count(200), "bob": 5}


def test_what_was_not_answered_is_not_looked_at(served) -> None:
    rows = crafted(20)
    served.guard.is_down = True
    with served.client() as client:
        assert ask(client, rows).status_code == 503
        served.guard.is_down = False
        assert ask(client, natural()[:5].tolist()).status_code == 200
    known = served.guard.watch.choose("alice", served.shield)
    assert known is served.shield


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_a_watch_cannot_compare_are_refused_before_the_charge(served, number) -> None:
    from tritonclient.http import InferenceServerClient, InferInput

    rows = np.full((1, 6), number, np.float32)
    given = InferInput("x", [1, 6], "FP32").set_data_from_numpy(rows)
    body, length = InferenceServerClient.generate_request_body([given])
    with served.client() as client:
        headers = {"Inference-Header-Content-Length": str(length)}
        refused = client.post(INFER, content=body, headers=headers)
    assert (refused.status_code, refused.json()) == (400, {"error": "Expected finite numbers."})
    assert not served.guard.charged


class Free(nn.Module):
    def forward(self, x, scale=None):
        x = x.flatten(1).float()
        return torch.stack([x.sum(1), x.amax(1), x.amin(1)], 1)


def test_rows_of_another_size_are_refused_before_the_charge(tmp_path) -> None:
    shield = sn.harden(Free().eval(), extent=sn.Extent(3))
    watch = Watch.of(shield, natural(), POLICY)
    inputs = (TensorFacts("x", (None, None), "float32"),)
    served = Served(tmp_path, shield.model, inputs, shield, watch=watch)
    with served.client() as client:
        assert ask(client, natural()[:2].tolist()).status_code == 200
        refused = ask(client, [[1.0, 2.0]])
    assert (refused.status_code, refused.json()) == (400, {"error": "Expected rows of [6]."})
    assert served.guard.charged == {"alice": 2}


@pytest.mark.parametrize(
    ("facts", "limits", "words"),
    [
        (TensorFacts("x", (None, 3), "float32"), {}, "watch of the model's first input, x"),
        (TensorFacts("x", (None, 6, 1), "float32"), {}, "watch of the model's first input, x"),
        (TensorFacts("x", (None, 6), "int64"), {}, "int64"),
        (X[0], {"max_rows": 257}, "max_rows <= 256"),
    ],
)
def test_a_watch_that_could_not_look_is_refused_before_the_server_starts(
    tmp_path, facts, limits, words
) -> None:
    shield = sn.harden(Free().eval(), extent=sn.Extent(3))
    watch = Watch.of(shield, natural(), POLICY)
    with pytest.raises(ConfigError, match=words):
        Served(tmp_path, shield.model, (facts,), shield, watch=watch, **limits)


def test_a_watch_of_a_served_model_is_that_of_its_shield(shield) -> None:
    model = ServedModel(shield, inputs=X, limits=Limits(max_rows=50))
    torch.manual_seed(0)
    watch = watch_of(model, natural(), POLICY)
    assert watch.profile.scale.shape == (6,)
    distribution = shield.distribution(shield(natural()))
    asked = watch.profile.read(natural(), distribution)
    assert float(watch.profile.is_novel(asked).float().mean()) < 0.02
    with pytest.raises(DataError, match="at least 200 natural inputs"):
        watch_of(model, natural(100), POLICY)


class Pair(nn.Module):
    """Answers with two heads, the watched one second."""

    def forward(self, a, b):
        return {"other": b @ torch.ones(4, 2), "logits": a[:, :3] * 3}


def test_a_watch_reads_the_answer_and_the_first_input_of_several(tmp_path) -> None:
    settings = {
        "outputs": {"logits": "logits", "other": "logits"},
        "also": {"other": (sn.Label(),)},
        "extent": sn.Extent(3, fields={"other": sn.Extent(2)}),
    }
    shield = sn.Shield(Pair().eval(), sn.Confidence(4), sn.Label(), **settings)
    given = {"a": natural(), "b": torch.zeros(400, 4)}
    inputs = tuple(
        TensorFacts(name, (None, size), "float32") for name, size in (("a", 6), ("b", 4))
    )
    model = ServedModel(shield, name="m", inputs=inputs, example=given)
    assert model.main == "logits"
    watch = watch_of(model, given, WatchPolicy(0.1, 0.2, 0.5, harder=(sn.Label(),)))
    served = Served(tmp_path, shield.model, inputs, shield, watch=watch)
    far = {"a": crafted(60), "b": [[0.0] * 4] * 60}
    with served.client() as client:
        body = {"inputs": far}
        assert client.post(PREDICT, json=body).status_code == 200
        assert client.post(PREDICT, json=body).status_code == 429
