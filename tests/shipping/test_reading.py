"""Every byte is as it was listed, and nothing else is in the folder."""

import os
import socket
from pathlib import Path

import pytest
from artifacts import content, keys, made

import shieldnet as sn
from shieldnet.shipping.parts import MANIFEST, PARTS, SIGNATURE
from shieldnet.shipping.reading import read_folder

FILES = (
    *("README.md", "certificate.json", "certificate.txt", "manifest.json", "model.json"),
    *("policy.toml", "report.json", "shield.toml", "weights.safetensors"),
)


@pytest.fixture
def folder(tmp_path) -> Path:
    return made(tmp_path / "hardened")


def refused(folder: Path) -> str:
    """Returns what both verbs say of a folder that is not whole; none of it is parsed."""
    checked = sn.verify(folder)
    assert not checked
    assert checked["files"].result == "fail"
    assert {one.result for one in checked.checks[1:]} == {"not checked"}
    with pytest.raises(sn.errors.VerificationFailed) as failed:
        sn.load_hardened(folder, model=lambda: pytest.fail("the model was made"))
    assert str(failed.value) == checked["files"].words
    return checked["files"].words


def test_a_whole_folder_is_read_and_has_these_files(folder) -> None:
    assert tuple(sorted(read_folder(folder))) == tuple(sorted(FILES))
    assert read_folder(folder) == content(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_a_flipped_byte_in_any_file_is_caught(folder, name, place) -> None:
    data = bytearray((folder / name).read_bytes())
    where = int(place * len(data)) if place != -1 else -1
    data[where] ^= 1
    (folder / name).write_bytes(data)
    assert name in refused(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-1], lambda data: b"", lambda data: data + b"\n", lambda data: data + data],
    ids=["cut", "emptied", "appended", "doubled"],
)
def test_a_file_that_is_cut_or_longer_is_caught(folder, name, change) -> None:
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    assert name in refused(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_taken_away_or_renamed_is_caught(folder, name) -> None:
    (folder / name).rename(folder / f"{name}.bak")
    refused(folder)
    (folder / f"{name}.bak").unlink()
    words = refused(folder)
    assert "is no hardened folder" in words if name == MANIFEST else f"{name} is missing" in words


def test_two_files_that_changed_places_are_caught(folder) -> None:
    one, other = folder / "certificate.txt", folder / "README.md"
    texts = one.read_bytes(), other.read_bytes()
    one.write_bytes(texts[1])
    other.write_bytes(texts[0])
    assert "README.md was changed; certificate.txt was changed" in refused(folder)


@pytest.mark.parametrize(
    "name",
    [
        *(".git", ".gitignore", ".gitattributes", ".github", ".DS_Store", "model.sig", "x.pkl"),
        *("Shield.toml", "ＲＥＡＤＭＥ.md", "REPORT.JSON", "weights.safetensors ", "a\nb", "é"),
        *("__pycache__", "model.onnx", "model.pt2", "nul\x7f", "\udcff"),
    ],
)
def test_a_planted_file_is_caught_whatever_it_is_called(folder, name) -> None:
    (folder / name).write_text("planted")
    assert ascii(name)[1:-1] in refused(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Shield.toml", "differs from shield.toml in case or in Unicode alone"),
        ("ＲＥＡＤＭＥ.md", "differs from README.md in case or in Unicode alone"),
        (".gitignore", "is hidden and is not listed"),
        ("model.onnx", "model.onnx is not listed in manifest.json"),
    ],
)
def test_it_says_what_is_odd_about_a_planted_file(folder, name, words) -> None:
    (folder / name).write_text("planted")
    assert words in refused(folder)


@pytest.mark.parametrize("name", [".git", "__pycache__", "weights.safetensors", "manifest.sig"])
def test_a_folder_inside_is_caught_even_empty(folder, name) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    assert f"{name} is a folder" in refused(folder).replace("'", "")


@pytest.mark.parametrize("name", ["report.json", "manifest.json", "manifest.sig", "else"])
def test_a_link_is_caught_even_to_the_same_bytes(folder, name, tmp_path) -> None:
    outside = tmp_path / "outside"
    here = folder / name
    outside.write_bytes(here.read_bytes() if here.exists() else b"{}")
    here.unlink(missing_ok=True)
    here.symlink_to(outside)
    assert f"{name} is a link" in refused(folder).replace("'", "")


def test_a_pipe_and_a_socket_are_caught_and_nothing_waits_for_them(folder, monkeypatch) -> None:
    (folder / "report.json").unlink()
    os.mkfifo(folder / "report.json")
    assert "report.json is a pipe" in refused(folder)
    (folder / "report.json").unlink()
    monkeypatch.chdir(folder)  # a socket's name may not be long
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("report.json")
        assert "report.json is a socket" in refused(folder)


def test_a_file_that_became_a_link_after_it_was_listed_is_not_followed(
    folder, tmp_path, monkeypatch
) -> None:
    """Somebody changes the folder while it is read."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    real = os.open

    def late(path, flags, *more, **settings):
        if Path(path).name == "report.json" and Path(path).parent == folder:
            Path(path).unlink()
            Path(path).symlink_to(secret)
        return real(path, flags, *more, **settings)

    monkeypatch.setattr("shieldnet.shipping.reading.os.open", late)
    assert "Cannot read report.json" in sn.verify(folder)["files"].words


def test_each_file_is_opened_once_so_that_what_is_hashed_is_what_is_parsed(
    folder, monkeypatch
) -> None:
    opened, real = [], os.open

    def counted(path, flags, *more, **settings):
        if Path(path).parent == folder:
            opened.append(Path(path).name)
        return real(path, flags, *more, **settings)

    monkeypatch.setattr("os.open", counted)
    monkeypatch.setattr(Path, "open", lambda path, *_, **__: pytest.fail(f"opened {path} again"))
    assert read_folder(folder)
    assert sorted(opened) == sorted(FILES)


def test_a_file_that_is_too_large_is_not_read(folder, monkeypatch) -> None:
    with (folder / "policy.toml").open("wb") as file:
        file.truncate(2**40)  # of holes
    assert "policy.toml has more than 1048576 bytes: it is not read" in refused(folder)


def test_a_huge_manifest_is_not_read(folder) -> None:
    (folder / MANIFEST).write_bytes(b"[" * (2**20 + 1))
    assert "manifest.json has more than 1048576 bytes" in refused(folder)


def test_a_folder_of_very_many_files_is_refused_without_listing_all(folder) -> None:
    for number in range(300):
        (folder / f"{number}").touch()
    assert "and " in refused(folder)
    assert len(refused(folder)) < 500


def test_what_is_no_folder_is_bad_input_and_no_broken_folder(folder, tmp_path) -> None:
    for path, words in (
        (tmp_path / "nowhere", "Cannot read the folder"),
        (folder / MANIFEST, "got the file"),
    ):
        with pytest.raises(sn.errors.DataError, match=words):
            sn.verify(path)
        with pytest.raises(sn.errors.DataError, match=words):
            sn.load_hardened(path)


def test_an_empty_folder_is_none(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is no hardened folder: it has no manifest.json" in refused(tmp_path / "empty")


def test_a_signature_is_part_of_the_folder_and_of_no_manifest(tmp_path) -> None:
    folder = made(tmp_path / "signed", key=keys(tmp_path)[0])
    assert SIGNATURE in read_folder(folder)
    assert SIGNATURE not in PARTS
