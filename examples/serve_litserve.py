"""Serves a guarded model with LitServe: the guard stands where the model would."""

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import litserve
import torch
from fastapi import HTTPException
from torch import Tensor, nn

import shieldnet as sn


class Guarded(litserve.LitAPI):
    """Charges each request to its client before the model is asked."""

    def __init__(self, ledger: str) -> None:
        super().__init__()
        self.ledger = ledger

    def setup(self, device: str) -> None:
        model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5)).eval()
        shield = sn.harden(model, extent=sn.Extent(classes=5))
        self.guard = sn.Guard(shield, ledger=self.ledger, queries_per_client=2, window="day")

    def decode_request(self, request: dict[str, Any], **_: object) -> tuple[str, Tensor]:
        # In a real server the client is who the key or the token says.
        return request["client"], torch.tensor([request["row"]])

    def predict(self, asked: tuple[str, Tensor], **_: object) -> Tensor:
        client, row = asked
        try:
            return self.guard(row, client=client)
        except sn.errors.BudgetExceeded:
            raise HTTPException(429, "budget exceeded") from None

    def encode_response(self, answer: Tensor, **_: object) -> dict[str, list[float]]:
        return {"probabilities": answer.softmax(-1)[0].tolist()}


def ask(url: str) -> str:
    body = json.dumps({"client": "alice", "row": [0.5] * 20}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - our own server
            return f"{answer.status}: {answer.read().decode()}"
    except urllib.error.HTTPError as refused:
        return f"{refused.code}: {refused.read().decode()}"


def wait_for(url: str) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(url):  # noqa: S310 - our own server
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)


def ask_three_times(port: int) -> None:
    wait_for(f"http://127.0.0.1:{port}/health")
    for _ in range(3):
        print(ask(f"http://127.0.0.1:{port}/predict"), flush=True)
    os.kill(os.getpid(), signal.SIGINT)  # as Ctrl+C does: the server shuts down


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    threading.Thread(target=ask_three_times, args=(port,)).start()
    with TemporaryDirectory() as folder:
        api = Guarded(f"sqlite:///{Path(folder) / 'budget.db'}")
        server = litserve.LitServer(api, accelerator="cpu")
        server.run("127.0.0.1", port, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    main()
