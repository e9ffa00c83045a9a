"""Stores of ledgers: real servers, started once for each process of the tests."""

import shutil
from collections.abc import Iterator

import pytest
from servers import (
    KEY,
    MISSING,
    emptied,
    free_port,
    postgres_programs,
    postgres_running,
    redis_running,
)

from shieldnet.serving.ledger import Ledger

STORES = ("sqlite", "postgresql", "redis")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory) -> Iterator[str]:
    pytest.importorskip("redis")
    if shutil.which("redis-server") is None:
        pytest.skip(f"No Redis here: {MISSING}")
    with redis_running(tmp_path_factory.mktemp("redis"), free_port()) as url:
        yield url


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    pytest.importorskip("psycopg")
    if postgres_programs() is None:
        pytest.skip(f"No PostgreSQL here: {MISSING}")
    with postgres_running(free_port()) as url:
        yield url


@pytest.fixture(params=STORES)
def url(request, tmp_path) -> str:
    """The address of an empty ledger in each of the stores."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return emptied(request.getfixturevalue(f"{request.param}_server"))


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
