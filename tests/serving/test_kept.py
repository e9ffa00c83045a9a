"""Looking at a ledger: what is there is read, and nothing is made or changed."""

import sqlite3

import pytest
from servers import KEY, emptied

from shieldnet.core.errors import ConfigError
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.serving.kept import KeptLedger
from shieldnet.serving.ledger import Ledger


@pytest.mark.parametrize("tables", ["", "CREATE TABLE head (a)"], ids=["empty", "head"])
@pytest.mark.parametrize("key", [KEY, None], ids=["key", "no-key"])
def test_a_file_of_another_program_stays_as_it_was(tmp_path, monkeypatch, tables, key) -> None:
    monkeypatch.delenv("SHIELDNET_LEDGER_KEY", raising=False)
    path = tmp_path / "a file?of=others#1.db"
    connection = sqlite3.connect(path)
    connection.executescript(tables)
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="There is no ledger"):
        KeptLedger.read(f"sqlite:///{path}", key)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_database_without_a_ledger_gets_no_table(postgresql_server) -> None:
    import psycopg

    url = emptied(postgresql_server)
    query = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'shieldnet%'"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "DROP TABLE IF EXISTS shieldnet_head, shieldnet_records, shieldnet_totals, "
            "shieldnet_requests"
        )
        with pytest.raises(ConfigError, match="There is no ledger"):
            KeptLedger.read(url, KEY)
        assert connection.execute(query).fetchone() == (0,)


def test_a_ledger_is_read_beside_its_server_and_after_it(url) -> None:
    with Ledger(url, key=KEY) as ledger:
        ledger.charge("alice", PrivacyCost(bits=3.0), 5)
        KeptLedger.read(url, KEY).verify()
    kept = KeptLedger.read(url, KEY)
    assert kept.charged(ledger._seal.subject("alice"), kept.policy.per_client[0]).queries == 5
    assert len(list(kept.lines())) == kept.verify().records
