"""Whatever is sent to a real server: a clear refusal or a charged answer, never a 5xx.

``SHIELDNET_FUZZ=10000`` sends as many requests; by default they are few.
"""

import json
import os
from collections.abc import Iterator
from itertools import count

import numpy as np
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
from serving_parts import Served
from test_serving_protocol import REQUEST

from shieldnet.serving.app.protocol import BINARY_HEADER

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

    def require_fair(
        self, method: str, status: int, content: bytes, length: str | None, before: int
    ) -> None:
        self.statuses.add(status)
        paid = self.charged() - before
        assert status < 500
        if method == "POST" and status == 200:
            assert paid == rows_of(content, length) > 0
            assert sum(self.served.network.asked) <= self.charged()
        elif status != 422:
            assert paid == 0


def rows_of(content: bytes, length: str | None) -> int:
    outputs = json.loads(content[: None if length is None else int(length)])["outputs"]
    return len(outputs) if isinstance(outputs[0], list) else int(outputs[0]["shape"][0])


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Iterator[Asked]:
    served = Served(tmp_path_factory.mktemp("fuzz"))
    with served.on_loopback() as address:
        found = Asked(served, address)
        yield found
        found.session.close()


def test_a_server_that_is_asked_by_its_openapi_document_keeps_to_it(asked) -> None:
    asked.statuses.clear()

    @often
    @given(data=st.data())
    def ask(data) -> None:
        case = data.draw(data.draw(st.sampled_from(asked.operations)).as_strategy())
        if data.draw(st.integers(0, 9)):  # or else nearly all addresses lead nowhere
            known = {"name": "m", "version": "1"}
            case.path_parameters |= {name: known[name] for name in case.path_parameters}
        before = asked.charged()
        headers = asked.served.headers if data.draw(st.integers(0, 9)) else {}
        answer = case.call(base_url=asked.url, session=asked.session, headers=headers)
        case.validate_response(answer, checks=CHECKS)
        asked.require_fair(
            answer.request.method,
            answer.status_code,
            answer.content,
            answer.headers.get(BINARY_HEADER.lower(), [None])[0],
            before,
        )

    ask()
    assert {200, 400} <= asked.statuses


def test_a_server_that_is_asked_nearly_rightly_charges_what_it_answers(asked) -> None:
    asked.statuses.clear()
    number_of = count()  # a key that came before buys its answer again
    number = st.floats(width=32) | st.floats(-9, 9, width=32)

    @often
    @given(
        request=st.none() | REQUEST,
        rows=st.lists(st.lists(number, min_size=6, max_size=6), min_size=1, max_size=3),
        form=st.sampled_from(["plain", "protocol", "binary"]),
        binary=st.booleans(),
        tail=st.just(b"") | st.binary(max_size=8),
        key=st.none() | st.text(KEYS, max_size=3),
    )
    def ask(request, rows, form, binary, tail, key) -> None:
        headers = dict(asked.served.headers)
        tensor = {"name": "x", "shape": [len(rows), 6], "datatype": "FP32", "data": rows}
        body = {"inputs": [tensor], "parameters": {"binary_data_output": binary}}
        if form == "plain":
            body = {"inputs": rows}
        elif form == "binary":
            tensor |= {"data": None, "parameters": {"binary_data_size": 24 * len(rows)}}
        content = json.dumps(request or body).encode()
        if form == "binary":
            headers[BINARY_HEADER] = str(len(content))
            content += np.array(rows, "<f4").tobytes()
        if key is not None:
            headers["Idempotency-Key"] = f"{key}{next(number_of)}".encode("latin-1")
        path = "/predict" if form == "plain" else "/v2/models/m/infer"
        before = asked.charged()
        answer = asked.session.post(asked.url + path, data=content + tail, headers=headers)
        length = answer.headers.get(BINARY_HEADER)
        asked.require_fair("POST", answer.status_code, answer.content, length, before)

    ask()
    assert {200, 400} <= asked.statuses
