"""What a single store does when it fails, restarts or is set up so that it may forget."""

import re
import shutil

import pytest
from servers import KEY, free_port, redis_running

from shieldnet.core.errors import ConfigError, LedgerUnavailable, ShieldnetError
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.serving import Budget, Ledger
from shieldnet.serving.secret import key_of

COST = PrivacyCost(bits=3.0)


def given_until(words: str, ledger: Ledger) -> int:
    """Asks until it is refused in these words, and counts the answers."""
    given = 0
    while True:
        try:
            ledger.charge("alice", COST)
        except ShieldnetError as refused:
            wrong = None if re.search(words, str(refused)) else refused
            break
        given += 1
    assert wrong is None
    return given


def test_a_full_disk_gives_no_answer_and_loses_nothing(tmp_path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'l.db'}", per_client=Budget(queries=10**6))
    ledger.charge("alice", COST)
    connection = ledger._store._store._connected()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    given = 1 + given_until("full.*No answer is given without a charge", ledger)
    connection.execute(f"PRAGMA max_page_count = {10**6}")
    ledger.charge("alice", COST)
    assert ledger.left("alice")[0].spent.queries == given + 1
    ledger.verify()
    ledger.close()


def test_a_file_that_is_no_ledger_is_refused(tmp_path) -> None:
    path = tmp_path / "other.db"
    path.write_text("This is no database, but a text that is longer than a page's header." * 20)
    with pytest.raises(LedgerUnavailable, match="not a database"):
        Ledger(f"sqlite:///{path}", key=KEY)
    with pytest.raises(LedgerUnavailable, match="unable to open"):
        Ledger(f"sqlite:///{tmp_path / 'no-folder' / 'l.db'}", key=KEY)


def test_a_store_that_is_not_there_is_no_answer_and_says_no_password() -> None:
    port = free_port()
    for url in (
        f"redis://user:pass-word@127.0.0.1:{port}/0",
        f"postgresql://user:pass-word@127.0.0.1:{port}/db",
    ):
        pytest.importorskip("redis" if url.startswith("redis") else "psycopg")
        with pytest.raises(LedgerUnavailable, match="cannot be reached") as refused:
            Ledger(url, key=KEY)
        assert "pass-word" not in str(refused.value)


def test_redis_may_restart_between_two_charges(tmp_path) -> None:
    pytest.importorskip("redis")
    if shutil.which("redis-server") is None:
        pytest.skip("No Redis here: apt-get install redis-server")
    port, settings = free_port(), {"key": KEY, "per_client": Budget(queries=50), "lease_rows": 1}
    with redis_running(tmp_path, port) as url:
        ledger = Ledger(url, **settings)
        for _ in range(20):
            ledger.charge("alice", COST)
    with pytest.raises(LedgerUnavailable):
        ledger.charge("alice", COST)
    with redis_running(tmp_path, port):
        assert given_until("The budget of this client does not cover", ledger) == 30
        ledger.verify()
        ledger.close()


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
        ("appendonly", "no", "yes"),
        ("appendfsync", "everysec", "always"),
        ("no-appendfsync-on-rewrite", "yes", "no"),
    ],
)
def test_redis_must_not_be_set_up_to_forget(redis_server, name, value, good) -> None:
    import redis

    with redis.Redis.from_url(redis_server) as client:
        client.config_set(name, value)
        try:
            with pytest.raises(ConfigError, match=f"CONFIG SET {name} {good}"):
                Ledger(redis_server, key=KEY)
            if name == "appendfsync":
                client.flushall()
                Ledger(f"{redis_server}?appendfsync=everysec", key=KEY).close()
        finally:
            client.config_set(name, good)


def test_a_key_is_32_bytes_and_has_to_be_there(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("SHIELDNET_LEDGER_KEY", raising=False)
    for wrong in (b"short", "zz" * 32, "ab" * 16, 7):
        with pytest.raises(ConfigError, match="Expected key"):
            key_of(wrong, "redis://host")
    with pytest.raises(ConfigError, match="set SHIELDNET_LEDGER_KEY"):
        key_of(None, "redis://host")
    monkeypatch.setenv("SHIELDNET_LEDGER_KEY", "no")
    with pytest.raises(ConfigError, match="Expected SHIELDNET_LEDGER_KEY as 64"):
        key_of(None, "redis://host")
    monkeypatch.setenv("SHIELDNET_LEDGER_KEY", KEY.hex())
    assert key_of(None, "redis://host") == KEY == key_of(KEY.hex(), "redis://host")


def test_a_ledger_without_its_key_file_is_not_opened_with_a_new_one(tmp_path) -> None:
    url = f"sqlite:///{tmp_path / 'l.db'}"
    Ledger(url).close()
    (tmp_path / "l.db.key").unlink()
    with pytest.raises(ConfigError, match="The key of the ledger .* is missing"):
        Ledger(url)
    assert not (tmp_path / "l.db.key").exists()
