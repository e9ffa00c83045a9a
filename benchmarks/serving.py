"""What charging costs: the ledger alone, behind a web server, and under faults.

    apt-get install wrk redis-server postgresql
    python benchmarks/serving.py            # about four minutes
    python benchmarks/serving.py --quick    # half a minute, writes nothing

Servers run on loopback with durable commits (SQLite synchronous=FULL, PostgreSQL
synchronous_commit=on, Redis appendfsync=always). The web server is FastAPI on uvicorn, one process,
one thread of torch; the same application answers with the bare model, with the shield, and with the
shield behind each ledger, in turns.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from results import write_section
from tabulate import tabulate

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from servers import KEY, emptied, free_port, postgres_running, redis_running, started

from shieldnet.core.errors import BudgetExceeded, LedgerUnavailable
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.serving import Budget, Ledger

COST = PrivacyCost(bits=5.3219280949)
PLENTY = Budget(bits=1e9)
FORK = multiprocessing.get_context("fork")
COMMAND = "python benchmarks/serving.py"

APP = """
import os, torch
from fastapi import FastAPI, Request, Response
from models import resnet
import shieldnet as sn
from shieldnet.serving import Budget, Ledger

torch.set_num_threads(1)
model = resnet(10)[0].eval()
x = torch.rand(2, 3, 32, 32)
which = os.environ["WHICH"]
answer = model
if which != "bare":
    answer = shield = sn.harden(model, extent=sn.Extent(model(x).shape[-1]), example=x)
    shield(x)
    if which != "shield":
        guard = sn.Guard(shield, ledger=Ledger(which, per_client=Budget(bits=1e9)))
        answer = lambda row: guard(row, client="client")
app = FastAPI(openapi_url=None)

@app.post("/predict")
async def predict(request: Request) -> dict[str, list[list[float]]]:
    body = await request.body()
    row = torch.frombuffer(bytearray(body), dtype=torch.float32).reshape(1, 3, 32, 32)
    with torch.no_grad():
        return {"outputs": answer(row).tolist()}
"""
LOAD = """
wrk.method = "POST"
wrk.body = string.rep("\\0", 3 * 32 * 32 * 4)
done = function(summary, latency)
  io.write(string.format("p50 %d p99 %d errors %d\\n", latency:percentile(50),
    latency:percentile(99), summary.errors.status + summary.errors.read + summary.errors.timeout))
end
"""


@contextmanager
def stores(folder: Path) -> Iterator[dict[str, str]]:
    """Runs every store; yields their addresses."""
    (folder / "redis").mkdir()
    with ExitStack() as stack:
        redis_url = stack.enter_context(redis_running(folder / "redis", free_port()))
        postgres_url = stack.enter_context(postgres_running(free_port()))
        emptied(postgres_url)
        yield {
            "SQLite": f"sqlite:///{folder / 'ledger.db'}",
            "Redis": redis_url,
            "PostgreSQL": postgres_url,
        }


def emptied_store(url: str) -> str:
    """Takes everything out of a store."""
    if not url.startswith("sqlite"):
        return emptied(url)
    for path in Path(url.removeprefix("sqlite:///")).parent.glob("ledger.db*"):
        path.unlink()
    return url


def charge_for(url: str, seconds: float, clients: int, results) -> None:
    """Charges one answer after the other to several clients.

    Reports the microseconds of each charge, and how many came in the second half of the time, when
    every client has a lease.
    """
    with Ledger(url, key=KEY, per_client=PLENTY) as ledger:
        names = itertools.cycle(f"client {os.getpid()} {number}" for number in range(clients))
        took, later, end = [], 0, time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            ledger.charge(next(names), COST)
            took.append(1e6 * (time.perf_counter() - start))
            later += end - start < seconds / 2
    results.put((took, later))


def charges(url: str, seconds: float, processes: int, clients: int) -> tuple[float, ...]:
    """Measures charges a second, those of the second half, and p50 and p99 in microseconds."""
    emptied_store(url)
    results = FORK.Queue()
    arguments = (url, seconds, clients, results)
    workers = [FORK.Process(target=charge_for, args=arguments) for _ in range(processes)]
    for worker in workers:
        worker.start()
    found = [results.get() for _ in workers]
    took = sorted(itertools.chain.from_iterable(part for part, _ in found))
    later = sum(count for _, count in found)
    for worker in workers:
        worker.join()
    rates = len(took) / seconds, 2 * later / seconds
    return *rates, took[len(took) // 2], took[len(took) * 99 // 100]


def served(which: str, seconds: int, folder: Path) -> tuple[float, float, float]:
    """Measures requests a second, p50 and p99 in milliseconds, with 8 connections."""
    port, paths = free_port(), [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    (folder / "bench_app.py").write_text(APP)
    (folder / "load.lua").write_text(LOAD)
    os.environ |= {
        "WHICH": which,
        "SHIELDNET_LEDGER_KEY": KEY.hex(),
        "PYTHONPATH": os.pathsep.join([str(folder), *paths]),
    }
    words = f"-m uvicorn bench_app:app --port {port} --log-level error --no-access-log"
    server = started([sys.executable, *words.split()], port)
    try:
        address = f"http://127.0.0.1:{port}/predict"
        command = ["wrk", "-t1", "-c8", "-s", str(folder / "load.lua"), address]
        subprocess.run([*command, "-d2"], check=True, capture_output=True)
        run = subprocess.run([*command, f"-d{seconds}"], check=True, capture_output=True, text=True)
    finally:
        server.terminate()
        server.wait()
    p50, p99, errors = map(int, re.search(r"p50 (\d+) p99 (\d+) errors (\d+)", run.stdout).groups())
    if errors:
        raise RuntimeError(run.stdout)
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", run.stdout)[1])
    return rate, p50 / 1e3, p99 / 1e3


def answer_until_killed(url: str, answers, begun) -> None:
    """Charges from 8 threads, and counts each answer when it would be given."""
    ledger = Ledger(url, key=KEY, per_client=PLENTY)
    lock = threading.Lock()  # of this process: one of all would stay with a server that is killed

    def ask() -> None:
        while True:
            ledger.charge("client", COST)
            with lock:
                answers.value += 1

    for _ in range(8):
        threading.Thread(target=ask, daemon=True).start()
    begun.set()
    threading.Event().wait()


def killed(url: str, kills: int) -> list[int]:
    """Kills a server of 8 threads again and again; counts answers and charges of all."""
    emptied_store(url)
    answers = FORK.RawValue("l", 0)
    for number in range(1, kills + 1):
        begun = FORK.Event()
        server = FORK.Process(target=answer_until_killed, args=(url, answers, begun))
        server.start()
        begun.wait()
        while answers.value < number * 10_000 // kills:
            time.sleep(0.001)
        os.kill(server.pid, signal.SIGKILL)
        server.join()
    with Ledger(url, key=KEY, per_client=PLENTY) as ledger:
        charged = ledger.left("client")[0].spent.queries
        ledger.verify()
    return [answers.value, charged, kills * (100 + 8)]


def race(url: str, results) -> None:
    """Charges until the budget is spent, and reports how many answers it got."""
    given = 0
    with Ledger(url, key=KEY, per_client=Budget(queries=10_000)) as ledger:
        while True:
            try:
                ledger.charge("client", COST)
            except BudgetExceeded:
                results.put(given)
                return
            except LedgerUnavailable:
                continue
            given += 1


def raced(url: str) -> int:
    """Lets four processes race for one budget; returns how many answers they got together."""
    emptied_store(url)
    results = FORK.Queue()
    racers = [FORK.Process(target=race, args=(url, results)) for _ in range(4)]
    for racer in racers:
        racer.start()
    given = sum(results.get() for _ in racers)
    for racer in racers:
        racer.join()
    return given


def main() -> None:
    """Runs all measurements and writes their section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    seconds, turns = (1, 1) if quick else (4, 3)
    folder = Path(tempfile.mkdtemp())
    with stores(folder) as urls:
        alone = []
        for name, url in urls.items():
            for processes, clients in ((1, 1), (1, 100), (2, 100)):
                numbers = map(round, charges(url, seconds, processes, clients))
                alone.append((name, processes, clients, *numbers))
        ways = {"bare model": "bare", "shield": "shield"}
        ways |= {f"shield and {name}": url for name, url in urls.items()}
        measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, which in ways.items():
                if "://" in which:
                    emptied_store(which)
                measured[name].append(served(which, seconds, folder))
        bare = statistics.median(rate for rate, _, _ in measured["bare model"])
        web = []
        for name, turns_of in measured.items():
            rate, p50, p99 = (statistics.median(column) for column in zip(*turns_of, strict=True))
            web.append((name, round(rate), f"{rate / bare:.2f}", f"{p50:.1f}", f"{p99:.1f}"))
        faults = []
        for name, url in urls.items():
            answers, charged, most = killed(url, 2 if quick else 5)
            faults.append((name, answers, charged, charged - answers, most, raced(url)))
    shutil.rmtree(folder)
    text = "\n\n".join(
        [
            "Charges of one answer, each before the next, with leases of 100, of clients that the "
            "ledger never saw before; and of the second half of the time, when all have leases:",
            tabulate(
                alone,
                (
                    "store",
                    "processes",
                    "clients each",
                    "charges/s",
                    "of the second half",
                    "p50 µs",
                    "p99 µs",
                ),
                tablefmt="github",
            ),
            "Requests to one FastAPI application around a small CNN (8 connections). The goal is "
            "0.85 of the bare model's with SQLite and 0.75 with a server:",
            tabulate(
                web,
                ("answers with", "requests/s", "of the bare model's", "p50 ms", "p99 ms"),
                tablefmt="github",
                disable_numparse=True,
            ),
            "A server of 8 threads is killed (SIGKILL) and started again, until 10,000 answers are "
            "given; then four processes race for a budget of 10,000 answers. More charges than "
            "answers are lost leases, of which there is one for each kill at most, and charges of "
            "answers that were about to be given:",
            tabulate(
                faults,
                ("store", "answers", "charged", "more", "at most", "answers of the race"),
                tablefmt="github",
            ),
        ]
    )
    if quick:
        print(text)
    else:
        write_section("serving", COMMAND, text)
    print(json.dumps({"faults": faults}))


if __name__ == "__main__":
    main()
