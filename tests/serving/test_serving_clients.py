"""Real clients on loopback ask a real server, and it ends as it should."""

import http.client
import json
import socket
import threading

import numpy as np
import pytest
import torch
from serving_parts import ROWS, Served, infer
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

INFER = "/v2/models/m/infer"


def given(rows=ROWS, **form) -> InferInput:
    array = np.array(rows, np.float32)
    return InferInput("x", list(array.shape), "FP32").set_data_from_numpy(array, **form)


def test_the_real_triton_client_is_answered_until_its_budget_is_spent(tmp_path) -> None:
    served = Served(tmp_path, rows=8)
    wanted = served.shield(torch.tensor(ROWS)).numpy()
    with served.on_loopback() as address:
        client = InferenceServerClient(address)
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("m")
        metadata = client.get_model_metadata("m", headers=served.headers)
        assert [one["name"] for one in metadata["outputs"]] == ["answer"]
        assert client.get_server_metadata(headers=served.headers)["name"] == "shieldnet"
        json_only = [InferRequestedOutput("answer", binary_data=False)]
        for inputs, outputs, version in [
            (given(), None, ""),
            (given(binary_data=False), None, "1"),
            (given(), json_only, ""),
            (given(binary_data=False), json_only, ""),
        ]:
            result = client.infer(
                "m", [inputs], version, outputs=outputs, headers=dict(served.headers)
            )
            assert np.array_equal(result.as_numpy("answer"), wanted)
        with pytest.raises(InferenceServerException, match="budget") as refused:
            client.infer("m", [given()], headers=dict(served.headers))
        assert refused.value.status() == "429"
        with pytest.raises(InferenceServerException, match="known API key") as unknown:
            client.infer("m", [given()])
        assert unknown.value.status() == "401"
        client.close()
    assert served.guard.charged == {"alice": 8}
    assert served.guard.is_closed


def sent(address: str, text: bytes) -> bytes:
    """Sends bytes, and returns all that comes back until the server hangs up."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), 30) as line:
        line.sendall(text)
        parts = []
        while part := line.recv(2**16):
            parts.append(part)
    return b"".join(parts)


def test_a_body_above_the_limit_is_not_read_to_its_end(tmp_path) -> None:
    served = Served(tmp_path, max_body_bytes=10_000)
    auth = served.headers["Authorization"]
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: {auth}\r\n"
    with served.on_loopback() as address:
        declared = sent(address, f"{head}Content-Length: 1000000000000\r\n\r\n".encode())
        chunk = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
        streamed = sent(address, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + 2 * chunk)
    for answer in (declared, streamed):
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"server:" not in answer.lower()
    assert not served.guard.charged


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path) -> None:
    served = Served(tmp_path, timeout_s=0.2)
    auth = served.headers["Authorization"]
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: {auth}\r\nContent-Length: 9\r\n\r\n"
    with served.on_loopback() as address:
        assert sent(address, head.encode()).startswith(b"HTTP/1.1 408 ")


def test_what_is_no_http_is_refused(tmp_path) -> None:
    with Served(tmp_path).on_loopback() as address:
        assert sent(address, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_server_that_ends_answers_what_it_has_and_closes_the_ledger(tmp_path) -> None:
    served = Served(tmp_path)
    served.network.waits_for = threading.Event()
    found = []

    def ask(address: str) -> None:
        body = json.dumps(infer()).encode()
        host, _, port = address.partition(":")
        line = http.client.HTTPConnection(host, int(port), timeout=60)
        line.request("POST", INFER, body, served.headers)
        found.append((line.getresponse().status, served.guard.is_closed))
        line.close()

    with served.on_loopback(lambda: served.network.waits_for.set()) as address:
        thread = threading.Thread(target=ask, args=[address])
        thread.start()
        while not served.guard.charged:
            assert thread.is_alive()
    thread.join(60)
    assert found == [(200, False)]
    assert served.guard.is_closed
