"""MLServer's own client asks a real server.

MLServer pins a FastAPI that is older than ours, so it lives in an environment of its own, whose
Python ``SHIELDNET_MLSERVER`` names::

    python3.11 -m venv mlserver-venv && mlserver-venv/bin/pip install mlserver
    SHIELDNET_MLSERVER=mlserver-venv/bin/python python -m pytest tests/serving
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from serving_parts import ROWS, Served, infer

PYTHON = os.environ.get("SHIELDNET_MLSERVER", "")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="needs SHIELDNET_MLSERVER, a Python that has mlserver (see this file)"
)

CODEC = """
import json, sys
import numpy as np
from mlserver.codecs import NumpyCodec, NumpyRequestCodec
from mlserver.types import InferenceRequest, InferenceResponse

if sys.argv[1] == "encode":
    rows = np.array(json.loads(sys.argv[2]), np.float32)
    request = InferenceRequest(inputs=[NumpyCodec.encode_input("x", rows)])
    print(request.model_dump_json())
else:
    response = InferenceResponse.model_validate_json(sys.argv[2])
    print(NumpyRequestCodec.decode_response(response).tolist())
"""


def codec(verb: str, text: str) -> str:
    done = subprocess.run(
        [PYTHON, "-c", CODEC, verb, text], capture_output=True, text=True, check=True
    )
    return done.stdout


def asked(address: str, folder: Path, served: Served, *options: str) -> list[dict]:
    """Lets MLServer's command send two requests, and returns what it wrote for each."""
    given, found = folder / "requests.jsonl", folder / "answers.jsonl"
    given.write_text("".join(json.dumps(infer([row])) + "\n" for row in ROWS))
    command = [str(Path(PYTHON).with_name("mlserver")), "infer", "-u", address, "-m", "m"]
    command += ["-i", str(given), "-o", str(found), "-r", "1", *options]
    header = f"Authorization: {served.headers['Authorization']}"
    subprocess.run([*command, "-H", header], check=True, capture_output=True, timeout=120)
    return [json.loads(line) for line in found.read_text().splitlines()]


@pytest.mark.parametrize("options", [(), ("-b",), ("-s", "2")])
def test_mlservers_command_is_answered_until_the_budget_is_spent(tmp_path, options) -> None:
    served = Served(tmp_path, rows=2)
    wanted = served.shield(torch.tensor(ROWS)).numpy()
    with served.on_loopback() as address:
        found = asked(address, tmp_path, served, *options)
        refused = asked(address, tmp_path, served, *options)
    answers = {one["parameters"]["batch_index"]: one["outputs"][0] for one in found}
    for row, line in enumerate(wanted):
        assert np.array_equal(np.array(answers[row]["data"], np.float32), line)
    assert len(refused) == 2
    assert all("budget" in one["error"]["msg"] for one in refused)
    assert served.guard.charged == {"alice": 2}


def test_mlservers_types_and_codecs_read_the_answer(tmp_path) -> None:
    served = Served(tmp_path)
    wanted = served.shield(torch.tensor(ROWS))
    with served.on_loopback() as address:
        answer = requests.post(
            f"http://{address}/v2/models/m/infer",
            data=codec("encode", json.dumps(ROWS)),
            headers=served.headers,
            timeout=60,
        )
    assert answer.status_code == 200, answer.text
    found = torch.tensor(json.loads(codec("decode", answer.text)))
    assert torch.equal(found, wanted)
