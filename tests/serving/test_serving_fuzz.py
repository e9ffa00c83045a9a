"""Whatever is sent to a real server: a clear refusal or a charged answer, never a 5xx.

``SHIELDNET_FUZZ=10000`` sends as many requests; by default they are few.
"""

import json
import os
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving_parts import ROWS, Served
from test_serving_protocol import REQUEST

CASES = int(os.environ.get("SHIELDNET_FUZZ", "100"))
CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]
KEYS = st.characters(min_codepoint=33, max_codepoint=255, exclude_categories=["Cc"])
often = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))


class Asked:
    """Sends requests to a server, and holds every answer to what was charged for it."""

    def __init__(self, served: Served, address: str) -> None:
        self.served, self.url = served, f"http://{address}"
        self.session = requests.Session()
        self.operations = [
            found.ok()
            for found in schemathesis.openapi.from_dict(served.app.openapi()).get_all_operations()
        ]
        self.statuses: set[int] = set()

    def charged(self) -> int:
        return sum(self.served.guard.charged.values())

    def require_fair(self, answer: requests.Response, before: int) -> None:
        self.statuses.add(answer.status_code)
        paid = self.charged() - before
        assert answer.status_code < 500
        if answer.request.method == "POST" and answer.status_code == 200:
            assert paid == rows_of(answer) > 0
            assert sum(self.served.network.asked) <= self.charged()
        elif answer.status_code != 422:
            assert paid == 0


def rows_of(answer: requests.Response) -> int:
    length = answer.headers.get("Inference-Header-Content-Length")
    document = json.loads(answer.content[: None if length is None else int(length)])
    outputs = document["outputs"]
    return len(outputs) if isinstance(outputs[0], list) else int(outputs[0]["shape"][0])


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Iterator[Asked]:
    served = Served(tmp_path_factory.mktemp("fuzz"))
    with served.on_loopback() as address:
        found = Asked(served, address)
        yield found
        found.session.close()


def test_a_server_that_is_asked_by_its_openapi_document_keeps_to_it(asked) -> None:
    @often
    @given(data=st.data())
    def ask(data) -> None:
        operation = data.draw(st.sampled_from(asked.operations))
        case = data.draw(operation.as_strategy())
        if data.draw(st.integers(0, 9)):  # or else nearly all addresses lead nowhere
            case.path_parameters |= {
                name: value
                for name, value in {"name": "m", "version": "1"}.items()
                if name in case.path_parameters
            }
        before = asked.charged()
        headers = asked.served.headers if data.draw(st.integers(0, 9)) else {}
        answer = case.call(base_url=asked.url, session=asked.session, headers=headers)
        case.validate_response(answer, checks=CHECKS)
        sent = requests.Response()
        sent.status_code, sent._content = answer.status_code, answer.content
        sent.request, sent.headers["x"] = answer.request, ""
        asked.require_fair(sent, before)

    ask()
    assert {200, 400, 401, 404} <= asked.statuses


def test_a_server_that_is_asked_nearly_rightly_charges_what_it_answers(asked) -> None:
    valid = st.sampled_from(["flat", "nested", "binary"])
    number = st.floats(width=32) | st.floats(-9, 9, width=32)

    @often
    @given(
        request=REQUEST | valid,
        rows=st.lists(st.lists(number, min_size=6, max_size=6), min_size=1, max_size=3),
        plain=st.booleans(),
        binary=st.booleans(),
        tail=st.just(b"") | st.binary(max_size=8),
        key=st.none() | st.text(KEYS, max_size=3),
    )
    def ask(request, rows, plain, binary, tail, key) -> None:
        headers = dict(asked.served.headers)
        body = request if isinstance(request, dict) else {"inputs": ROWS}
        if isinstance(request, str) and not plain:
            tensor = {"name": "x", "shape": [len(rows), 6], "datatype": "FP32", "data": rows}
            body = {"inputs": [tensor], "parameters": {"binary_data_output": binary}}
        elif isinstance(request, str):
            body = {"inputs": rows}
        content = json.dumps(body).encode() + tail
        if key is not None:
            headers["Idempotency-Key"] = key.encode("latin-1")
        path = "/predict" if plain else "/v2/models/m/infer"
        before = asked.charged()
        answer = asked.session.post(asked.url + path, data=content, headers=headers)
        asked.require_fair(answer, before)

    ask()
    assert {200, 400} <= asked.statuses
