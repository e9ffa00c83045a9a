"""What the tests of the server share: a guard in memory, a small model, a server on loopback."""

import contextlib
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from starlette.testclient import TestClient
from torch import nn

import shieldnet as sn
from shieldnet.core.errors import BudgetExceeded, ConfigError, LedgerUnavailable
from shieldnet.serving.app.keys import ApiKeys, add_key
from shieldnet.serving.app.limits import Limits
from shieldnet.serving.app.running import bound, server_of
from shieldnet.serving.app.served import ServedModel
from shieldnet.serving.app.web import make_app
from shieldnet.serving.budget import Balance, Budget
from shieldnet.serving.units import INFINITE, Units
from shieldnet.shipping.description import TensorFacts

X = (TensorFacts("x", (None, 6), "float32"),)
ROWS = [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]


class Fake:
    """Counts charges in memory, as a guard does in a ledger."""

    def __init__(self, shield, rows: int = 10**9, watch=None) -> None:
        self.shield, self.rows, self.watch = shield, rows, watch
        self.charged: Counter[str] = Counter()
        self.keys: dict[tuple[str, str], bytes] = {}
        self.is_closed = self.is_down = False
        self.renews_at: int | None = None
        self._lock = threading.Lock()

    def charge(self, client, rows=1, *, key=None, content=None):
        with self._lock:
            if self.is_down or self.is_closed:
                raise LedgerUnavailable("down")
            if (known := self.keys.get((client, str(key)))) is not None:
                if known != content:
                    raise ConfigError("another request")
                return Charge(repeated=True)
            if self.charged[client] + rows > self.rows:
                raise BudgetExceeded("secret details", renews_at=self.renews_at)
            self.charged[client] += rows
            if key is not None:
                self.keys[client, key] = content
            return Charge()

    def require_writable(self):
        self.left("-")

    def left(self, client):
        if self.is_down:
            raise LedgerUnavailable("down")
        left = self.rows - self.charged[client]
        budget, units = Budget(queries=self.rows), Units(INFINITE, INFINITE, left)
        return (Balance(budget, Units(queries=self.charged[client]), units, self.renews_at),)

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Charge:
    repeated: bool = False


class Counting(nn.Module):
    """Answers with three scores, and counts the rows that it was asked."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Linear(6, 3)
        self.asked: list[int] = []
        self.waits_for: threading.Event | None = None

    def forward(self, x):
        if self.waits_for is not None:
            assert self.waits_for.wait(30)
        self.asked.append(len(x))
        return self.layer(x)


class Served:
    """Holds an app with its parts, a key of alice and one of bob, and a client."""

    def __init__(
        self, folder: Path, model=None, inputs=X, shield=None, rows=10**9, watch=None, **limits
    ):
        self.network = Counting() if model is None else model
        self.shield = shield or sn.harden(self.network.eval(), extent=sn.Extent(3))
        self.guard = Fake(self.shield, rows, watch)
        file = folder / "keys.toml"
        self.keys = {name: add_key(file, name) for name in ("alice", "bob")}
        self.model = ServedModel(self.shield, name="m", inputs=inputs, limits=Limits(**limits))
        if isinstance(self.network, Counting):
            self.network.asked.clear()
        self.app = make_app(self.guard, self.model, ApiKeys.load(file))
        self.headers = {"Authorization": f"Bearer {self.keys['alice']}"}

    @contextlib.contextmanager
    def client(self):
        with TestClient(self.app, raise_server_exceptions=False, headers=self.headers) as client:
            yield client

    @contextlib.contextmanager
    def on_loopback(self, after_stop=lambda: None):
        """Serves on a free port; yields the address. after_stop: done while the server ends."""
        server = server_of(self.app, self.model.limits)
        listening = bound("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            after_stop()
            thread.join(60)


def infer(data=ROWS, **more) -> dict:
    """Returns a request for the protocol."""
    shape = [len(data), len(data[0])]
    return {"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": data}], **more}
