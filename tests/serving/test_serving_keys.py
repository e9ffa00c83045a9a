"""Keys are random, kept as hashes, and known by their client alone."""

import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from shell import shieldnet

from shieldnet.core.errors import ConfigError, DataError
from shieldnet.serving.app.keys import ApiKeys, add_key, remove_keys, shown


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
    assert "It is shown only now" in done.stderr
    refused = shieldnet(tmp_path, "keys", "add", "a b", "--keys", "keys.toml")
    assert refused.returncode == 2


def test_removed_keys_are_unknown_and_others_stay(tmp_path) -> None:
    file = tmp_path / "keys.toml"
    keys = [add_key(file, name) for name in ("alice", "alice", "bob")]
    file.write_text(f"# ours\n{file.read_text()}")
    first, second = ApiKeys.load(file).hashes["alice"]
    assert remove_keys(file, "alice", shown(first)[:12]) == 1
    assert [ApiKeys.load(file).client_of(key) for key in keys] == [None, "alice", "bob"]
    assert remove_keys(file, "alice") == 1
    known = ApiKeys.load(file)
    assert [known.client_of(key) for key in keys] == [None, None, "bob"]
    assert list(known.hashes) == ["bob"]
    assert second not in file.read_text()
    assert file.read_text().startswith("# ours\n")
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "which", "words"),
    [
        ("carol", None, "There is no key of 'carol'"),
        ("alice", "x", "0 begin with them"),
        ("alice", "", "2 begin with them"),
        ("alice", "sha256:", "0 begin with them"),
    ],
)
def test_keys_that_are_not_there_or_not_one_remove_nothing(tmp_path, name, which, words) -> None:
    file = tmp_path / "keys.toml"
    for _ in range(2):
        add_key(file, "alice")
    before = file.read_bytes()
    with pytest.raises(DataError, match=words):
        remove_keys(file, name, which)
    assert file.read_bytes() == before
    with pytest.raises(DataError, match=r"none\.toml"):
        remove_keys(tmp_path / "none.toml", "alice")
    assert not (tmp_path / ".none.toml.lock").exists()


def test_keys_that_are_added_and_removed_at_the_same_time_are_kept_and_gone(tmp_path) -> None:
    file = tmp_path / "keys.toml"
    names = [f"client{number}" for number in range(16)]
    for name in names:
        add_key(file, name)
    with ThreadPoolExecutor(8) as pool:
        removed = [pool.submit(remove_keys, file, name) for name in names]
        added = list(pool.map(lambda name: add_key(file, f"{name}.new"), names))
    assert [one.result() for one in removed] == [1] * 16
    known = ApiKeys.load(file)
    assert sorted(known.hashes) == sorted(f"{name}.new" for name in names)
    assert [known.client_of(key) for key in added] == [f"{name}.new" for name in names]


def test_the_commands_list_and_remove_keys_and_show_none(tmp_path) -> None:
    key = add_key(tmp_path / "keys.toml", "alice")
    add_key(tmp_path / "keys.toml", "bob")
    listed = shieldnet(tmp_path, "keys", "list", "--keys", "keys.toml")
    assert listed.returncode == 0, listed.stderr
    rows = [line.split() for line in listed.stdout.splitlines()[2:]]
    assert [name for name, _ in rows] == ["alice", "bob"]
    assert all(re.fullmatch("[0-9a-f]{12}", digits) for _, digits in rows)
    assert key not in listed.stdout
    command = ("keys", "remove", "alice", "--keys", "keys.toml")
    done = shieldnet(tmp_path, *command, "--hash", rows[0][1])
    assert done.returncode == 0, done.stderr
    assert list(ApiKeys.load(tmp_path / "keys.toml").hashes) == ["bob"]
    refused = shieldnet(tmp_path, *command)
    assert refused.returncode == 2
    assert "There is no key of" in refused.stderr
