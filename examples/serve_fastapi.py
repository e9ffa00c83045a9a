"""Serves a guarded model with FastAPI: one line charges, and a spent budget is status 429."""

import json
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import uvicorn
from fastapi import FastAPI, Header, HTTPException
from torch import nn

import shieldnet as sn
from shieldnet.serving.latency import until_next

KEYS = {"key-of-alice": "alice"}  # hashed, in a real server
STEP_S = 0.05  # longer than the slowest answer: the response time tells nothing


def make_app(guard: sn.Guard) -> FastAPI:
    app = FastAPI()

    @app.post("/predict")
    async def predict(rows: list[list[float]], x_key: str = Header()) -> list[list[float]]:
        start = time.monotonic()
        client = KEYS.get(x_key)
        if client is None:
            raise HTTPException(401, "unauthorized")
        try:
            answers = await guard.answer(torch.tensor(rows), client=client)
        except sn.errors.BudgetExceeded:
            raise HTTPException(429, "budget exceeded") from None
        await until_next(start, STEP_S)
        return answers.softmax(-1).tolist()

    return app


def ask(url: str, rows: list[list[float]]) -> str:
    headers = {"Content-Type": "application/json", "X-Key": "key-of-alice"}
    request = urllib.request.Request(url, json.dumps(rows).encode(), headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - our own server
            return f"{answer.status}: {answer.read().decode()}"
    except urllib.error.HTTPError as refused:
        return f"{refused.code}: {refused.read().decode()}"


def main() -> None:
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5)).eval()
    shield = sn.harden(model, extent=sn.Extent(classes=5))
    with TemporaryDirectory() as folder:
        ledger = f"sqlite:///{Path(folder) / 'budget.db'}"
        with sn.Guard(shield, ledger=ledger, queries_per_client=2, window="day") as guard:
            config = uvicorn.Config(make_app(guard), port=0, log_level="error")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run)
            thread.start()
            while not server.started:
                time.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            for _ in range(2):
                print(ask(f"http://127.0.0.1:{port}/predict", [[0.5] * 20, [0.1] * 20]))
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    main()
