"""Stores of ledgers: real servers, started once for each process of the tests."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import KEY, free_port, started

from shieldnet.serving.ledger import Ledger

STORES = ("sqlite", "postgresql", "redis")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory) -> Iterator[str]:
    pytest.importorskip("redis")
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    port = free_port()
    words = f"--port {port} --bind 127.0.0.1 --save --appendonly yes --appendfsync always"
    folder = tmp_path_factory.mktemp("redis")
    server = started([binary, *words.split(), "--dir", str(folder)], port)
    yield f"redis://127.0.0.1:{port}/0"
    server.terminate()
    server.wait()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory) -> Iterator[str]:
    pytest.importorskip("psycopg")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    # PostgreSQL refuses to run as root.
    become = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    folder = Path("/tmp") / f"shieldnet-postgres-{os.getpid()}"  # noqa: S108 (short, for a socket)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    if become:
        shutil.chown(folder, "postgres")
    data, bin_ = folder / "data", found[-1].parent
    make = [str(bin_ / "initdb"), "-D", str(data), "-U", "shieldnet", "-A", "trust", "--no-sync"]
    subprocess.run([*become, *make], check=True, stdout=subprocess.DEVNULL)
    port = free_port()
    command = [str(bin_ / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder)]
    server = started([*become, *command, "-c", "listen_addresses=127.0.0.1"], port)
    yield f"postgresql://shieldnet@127.0.0.1:{port}/postgres"
    server.terminate()
    server.wait()
    shutil.rmtree(folder)


def url_of(store: str, request: pytest.FixtureRequest) -> str:
    """Returns the address of an empty ledger."""
    if store == "redis":
        import redis

        url = request.getfixturevalue("redis_server")
        redis.Redis.from_url(url).flushall()
        return str(url)
    if store == "postgresql":
        import psycopg

        url = request.getfixturevalue("postgres_server")
        deadline = time.monotonic() + 30
        while True:
            try:
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
                return str(url)
            except psycopg.OperationalError:  # it is still starting
                assert time.monotonic() < deadline
                time.sleep(0.05)
    return f"sqlite:///{request.getfixturevalue('tmp_path') / 'ledger.db'}"


@pytest.fixture(params=STORES)
def url(request) -> str:
    """The address of an empty ledger in each of the stores."""
    return url_of(request.param, request)


@pytest.fixture
def opened(url) -> Iterator[object]:
    """Opens ledgers at the address, with one key, and closes them."""
    made: list[Ledger] = []

    def open_ledger(**settings: object) -> Ledger:
        made.append(Ledger(url, key=KEY, **settings))
        return made[-1]

    yield open_ledger
    for ledger in made:
        ledger.close()
