"""What response times tell of a model that is served over HTTP on loopback.

A server in a second process answers over a plain HTTP connection, with one of three models: an MLP
behind a shield, whose time depends on shapes alone; a model that stops early, for half of the
classes; and the same with response times in steps. `Timing` asks from this process, on wall time.

    python benchmarks/timing.py         # four minutes
"""

import multiprocessing
import time
from http.client import HTTPConnection

import torch
from results import write_section
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Game, Timing
from shieldnet.data.examples import Examples
from shieldnet.demo import digits
from shieldnet.serving.app.running import bound
from shieldnet.serving.latency import until_next

FINDINGS = ("timing.class", "timing.worst_class", "timing.membership")
STEP_S = 0.02
REPEATS, ROWS, LAYERS = 5, 800, 8


class StopsEarly(nn.Module):
    """Answers half of the classes after a small model, the others after a large one too."""

    def __init__(self, small: nn.Module) -> None:
        super().__init__()
        self.small = small
        self.large = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(LAYERS)))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (1, 64) -> (1, 10)."""
        scores = self.small(x)
        if int(scores.argmax()) >= 5:
            self.large(torch.ones(1, 1024))
        return scores


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """Returns an MLP of digits and its inputs and labels."""
    task = digits()
    inputs, labels = task.inputs.flatten(1), task.labels
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[:800]), labels[:800]).backward()
        optimizer.step()
    return model.eval(), inputs, labels


def serve(model: nn.Module, shielded: bool, step_s: float, port: object) -> None:
    """Serves a model on a free port, which it sends back."""
    import asyncio

    import uvicorn
    from fastapi import FastAPI, Request, Response

    torch.set_num_threads(1)
    answer = sn.harden(model, micro_batch=1) if shielded else model
    app = FastAPI()

    @app.post("/")
    async def predict(request: Request) -> Response:
        start = time.monotonic()
        row = torch.frombuffer(bytearray(await request.body()), dtype=torch.float32)
        with torch.no_grad():
            scores = answer(row.unsqueeze(0))
        if step_s:
            await until_next(start, step_s)
        return Response(scores.numpy().tobytes(), media_type="application/octet-stream")

    listener = bound("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="error", access_log=False)
    port.send(listener.getsockname()[1])
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


def measured(model: nn.Module, game: Game, *, shielded: bool, step_s: float) -> list[str]:
    """Times one server and returns a cell per finding, and the median response time."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(model, shielded, step_s, theirs), daemon=True)
    server.start()
    connection = HTTPConnection("127.0.0.1", ours.recv())
    times: list[float] = []

    def ask(row: Tensor) -> None:
        start = time.perf_counter()
        connection.request("POST", "/", body=row.numpy().tobytes())
        connection.getresponse().read()
        times.append(time.perf_counter() - start)

    try:
        outcome = Timing(ask=ask, repeats=REPEATS, rows=ROWS)(game)
    finally:
        server.terminate()
        server.join()
    found = {finding.name: f"{finding} ({finding.samples})" for finding in outcome.findings}
    median = sorted(times)[len(times) // 2] * 1e3
    return [f"{median:.2f}", *(found[name] for name in FINDINGS)]


def main() -> None:
    """Measures every server and writes the table."""
    torch.set_num_threads(1)
    model, inputs, labels = trained()
    sets = [
        Examples("members", inputs[:800], labels[:800]),
        Examples("nonmembers", inputs[800:], labels[800:]),
    ]
    early = StopsEarly(model).eval()
    game = Game(sn.harden(model), *sets)
    servers = {
        "MLP behind the shield": (model, True, 0.0),
        "a model that stops early": (early, False, 0.0),
        f"the same, in steps of {STEP_S * 1e3:.0f} ms": (early, False, STEP_S),
    }
    rows = []
    for name, (served, shielded, step_s) in servers.items():
        rows.append([name, *measured(served, game, shielded=shielded, step_s=step_s)])
        print(*rows[-1], sep=" | ", flush=True)
    head = ["server", "median, ms", *FINDINGS]
    table = "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
    write_section("timing", "python benchmarks/timing.py", f"{READING}\n\n{table}")


READING = f"""
Response times over HTTP on loopback, by wall time, one client, {REPEATS} queries an input: the
share of inputs whose class, or membership, is told above the commonest guess (95%, in brackets the
inputs that it was scored on; lower is better, 0 is nothing). The model that stops early does
{LAYERS} more layers of 1,024 for half of the classes: which half it was is all that its time can
tell of ten classes, about 0.1, and half for the class that shows most.
""".strip()

if __name__ == "__main__":
    main()
