"""Keys are random, kept as hashes, and known by their client alone."""

import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from shell import shieldnet

from shieldnet.core.errors import ConfigError, DataError
from shieldnet.serving.app.keys import ApiKeys, add_key


def test_a_key_is_its_clients_and_no_others(tmp_path) -> None:
    file = tmp_path / "keys.toml"
    keys = {name: add_key(file, name) for name in ("alice", "bob.7")}
    known = ApiKeys.load(file)
    for name, key in keys.items():
        assert known.client_of(key) == name
        assert len(key) == 43  # 32 random bytes
    for wrong in ("", "x", keys["alice"][:-1], keys["alice"].swapcase(), "é", "k" * 10**6, None):
        assert known.client_of(wrong) is None
    assert known.client_of(keys["alice"] + "=" * 200) is None


def test_the_file_holds_hashes_that_its_owner_alone_may_read(tmp_path) -> None:
    file = tmp_path / "keys.toml"
    key = add_key(file, "alice")
    assert key not in file.read_text()
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    (only,) = ApiKeys.load(file).hashes["alice"]
    assert only not in repr(ApiKeys.load(file))
    assert re.fullmatch("sha256:[0-9a-f]{64}", only)
    beside = tmp_path / ".keys.toml.lock"
    assert sorted(tmp_path.iterdir()) == [beside, file]
    assert beside.read_bytes() == b""


def test_a_client_may_have_two_keys_while_one_replaces_another(tmp_path) -> None:
    file = tmp_path / "keys.toml"
    first, second = add_key(file, "alice"), add_key(file, "alice")
    known = ApiKeys.load(file)
    assert first != second
    assert known.client_of(first) == known.client_of(second) == "alice"


def test_keys_that_are_added_at_the_same_time_are_all_kept(tmp_path) -> None:
    file = tmp_path / "keys.toml"
    names = [f"client{number}" for number in range(32)]
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda name: add_key(file, name), names))
    known = ApiKeys.load(file)
    assert [known.client_of(key) for key in keys] == names


def test_comments_of_the_owner_stay(tmp_path) -> None:
    file = tmp_path / "keys.toml"
    add_key(file, "alice")
    file.write_text(f"# ours\n{file.read_text()}")
    add_key(file, "bob")
    assert file.read_text().startswith("# ours\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version = 1",
        "version = 2\n[keys]\na = []",
        "version = 1\nmore = 1\n[keys]",
        "version = 1\n[keys]\na = 'sha256:00'",
        "version = 1\n[keys]\na = ['sha256:00']",
        "version = 1\n[keys]\na = [1]",
        "version = 1\nkeys = 1",
        f"version = 1\n[keys]\na = ['sha256:{'0' * 64}']\nb = ['sha256:{'0' * 64}']",
        "version = ",
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(DataError):
        ApiKeys.load(file)


@pytest.mark.parametrize("name", ["", "-", "a b", "../x", "é", "a" * 101, 'a"'])
def test_a_name_that_could_be_read_as_something_else_is_refused(tmp_path, name) -> None:
    with pytest.raises(ConfigError, match="Expected the name of a client"):
        add_key(tmp_path / "keys.toml", name)
    assert not (tmp_path / "keys.toml").exists()


def test_the_command_shows_a_key_once(tmp_path) -> None:
    done = shieldnet(tmp_path, "keys", "add", "alice", "--keys", "keys.toml")
    assert done.returncode == 0, done.stderr
    assert ApiKeys.load(tmp_path / "keys.toml").client_of(done.stdout.strip()) == "alice"
    assert "nothing shows again" in done.stderr
    refused = shieldnet(tmp_path, "keys", "add", "a b", "--keys", "keys.toml")
    assert refused.returncode == 2
