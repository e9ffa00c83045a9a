"""Real servers on loopback, and a clock that a test sets."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

KEY = bytes(range(32))
MISSING = "it is not installed: apt-get install redis-server postgresql"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def started(command: list[str], port: int) -> subprocess.Popen[bytes]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert server.poll() is None, f"{command[0]} ended"
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.02)
    raise AssertionError(f"{command[0]} did not answer")


def stopped(server: subprocess.Popen[bytes]) -> None:
    """Ends a server. Redis refuses to end while it writes a new append log."""
    for _ in range(30):
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(1)
            return
    server.kill()
    raise AssertionError(f"{server.args} did not end")


@contextmanager
def redis_running(folder: Path, port: int) -> Iterator[str]:
    """Runs Redis with an append log in a folder, which keeps it; yields its address."""
    words = f"--port {port} --bind 127.0.0.1 --save --appendonly yes --appendfsync always"
    server = started(["redis-server", *words.split(), "--dir", str(folder)], port)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        stopped(server)


def postgres_programs() -> Path | None:
    """Returns the newest PostgreSQL's folder of programs, as Debian installs it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def postgres_running(port: int) -> Iterator[str]:
    """Runs PostgreSQL in a folder of its own; yields its address."""
    programs = postgres_programs()
    assert programs is not None
    # It refuses to run as root, and a socket's path must be short.
    become = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    folder = Path("/tmp") / f"shieldnet-postgres-{port}"  # noqa: S108
    folder.mkdir(mode=0o700)
    try:
        if become:
            shutil.chown(folder, "postgres")
        data, words = str(folder / "data"), ["-U", "shieldnet", "-A", "trust", "--no-sync"]
        make = [*become, str(programs / "initdb"), "-D", data, *words]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        serve = [str(programs / "postgres"), "-D", data, "-p", str(port), "-k", str(folder)]
        server = started([*become, *serve, "-c", "listen_addresses=127.0.0.1"], port)
        try:
            yield f"postgresql://shieldnet@127.0.0.1:{port}/postgres"
        finally:
            stopped(server)
    finally:
        shutil.rmtree(folder)


def emptied(url: str) -> str:
    """Waits for a server, takes out everything, and returns its address."""
    if url.startswith("redis"):
        import redis

        with redis.Redis.from_url(url) as client:
            client.flushall()
        return url
    import psycopg

    deadline = time.monotonic() + 30
    while True:
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
            return url
        except psycopg.OperationalError:  # it is still starting
            assert time.monotonic() < deadline
            time.sleep(0.05)


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
