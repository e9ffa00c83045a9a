"""The commands that look at a ledger."""

import json
import re
import sqlite3

import pytest
from shell import shieldnet

from shieldnet.privacy.cost import PrivacyCost
from shieldnet.serving import Budget, Ledger


@pytest.fixture
def address(tmp_path) -> str:
    address = f"sqlite:///{tmp_path / 'ledger.db'}"
    with Ledger(address, per_client=Budget(bits=50, window="day")) as ledger:
        ledger.charge("alice", PrivacyCost(bits=5.5), 3)
        ledger.charge("bob", PrivacyCost(bits=5.5))
    return address


def test_show_tells_what_was_charged_to_whom_it_names(tmp_path, address) -> None:
    shown = shieldnet(tmp_path, "ledger", "show", address, "--client", "alice").stdout
    assert "Clients: 2." in shown
    every, alice, bob = re.findall("^(?:all|[0-9a-f]{32}) .*", shown, re.MULTILINE)
    assert re.search("no limit in total  +22 bits, mu -, 4 queries  +no limit", every)
    assert " (alice)  50 bits per day " in alice
    assert re.search("  16.5 bits, mu -, 3 queries  +33.5 bits", alice)
    assert re.search("^[0-9a-f]{32}   .* 5.5 bits, mu -, 1 query  +44.5 bits", bob)
    unknown = shieldnet(tmp_path, "ledger", "show", address, "--client", "carol").stdout
    assert "carol was never charged." in unknown
    assert "(carol)" not in unknown


def test_show_lists_clients_by_their_hashes_those_with_most_answers_first(
    tmp_path, address
) -> None:
    shown = shieldnet(tmp_path, "ledger", "show", address).stdout
    hashes = re.findall("^[0-9a-f]{32} ", shown, re.MULTILINE)
    assert len(hashes) == 2
    assert shown.index("16.5 bits, mu -, 3 queries") < shown.index("5.5 bits, mu -, 1 query")
    assert "alice" not in shown
    assert "leaves out" not in shown
    one = shieldnet(tmp_path, "ledger", "show", address, "--most", "1").stdout
    assert re.findall("^[0-9a-f]{32} ", one, re.MULTILINE) == hashes[:1]
    assert "leaves out: 1." in one
    none = shieldnet(tmp_path, "ledger", "show", address, "--most", "0").stdout
    assert "leaves out: 2." in none


def test_export_writes_every_record_and_no_name(tmp_path, address) -> None:
    run = shieldnet(tmp_path, "ledger", "export", address, "-o", "records.jsonl")
    assert run.returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(1, len(lines) + 1))
    assert sum(line.get("queries", 0) for line in lines) == 8  # of clients, and of all together
    assert "alice" not in (tmp_path / "records.jsonl").read_text()
    again = shieldnet(tmp_path, "ledger", "export", address, "-o", "records.jsonl")
    assert again.returncode == 2
    assert "--force" in again.stderr


def test_verify_tells_a_ledger_that_was_changed(tmp_path, address) -> None:
    whole = shieldnet(tmp_path, "ledger", "verify", address)
    assert whole.returncode == 0
    mac = whole.stdout.split("last one: ")[1].split()[0]
    assert shieldnet(tmp_path, "ledger", "verify", address, "--head", mac).returncode == 0
    assert shieldnet(tmp_path, "ledger", "verify", address, "--head", "0" * 64).returncode == 1
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("UPDATE totals SET bits = 0")
    connection.close()
    changed = shieldnet(tmp_path, "ledger", "verify", address)
    assert changed.returncode == 1
    assert "changed by somebody without its key" in changed.stderr


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("sqlite:///none.db", "There is no ledger none.db"),
        ("ledger.db", "Expected a ledger as sqlite:///ledger.db"),
        ("redis://127.0.0.1:1/0", "SHIELDNET_LEDGER_KEY"),
    ],
)
def test_no_ledger_is_said_and_none_is_made(tmp_path, address: str, words: str) -> None:
    run = shieldnet(tmp_path, "ledger", "show", address)
    assert run.returncode == 2
    assert words in run.stderr
    assert not list(tmp_path.iterdir())
