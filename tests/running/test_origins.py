"""Packages are installed wherever they lie; working copies and editable packages are not."""

import importlib
import json
import sys

import pytest

from shieldnet.running.origins import is_installed, is_installed_path

RECORD = "their_lib/__init__.py,,\ntheir_lib-1.dist-info/RECORD,,\n"


def library(folder, *, record: str = RECORD, origin: object = None):
    """Writes a package with the list of its files, as pip does."""
    about = folder / "their_lib-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their_lib\nVersion: 1\n")
    (about / "RECORD").write_text(record)
    if origin is not None:
        (about / "direct_url.json").write_text(json.dumps(origin, separators=(",", ":")))
    (folder / "their_lib").mkdir()
    path = folder / "their_lib" / "__init__.py"
    path.write_text("class Kind: pass\n")
    return path


@pytest.mark.parametrize(
    "folder", ["env/lib/python3.11/site-packages", "usr/lib/python3/dist-packages", "target"]
)
def test_a_package_is_installed_wherever_it_lies(folder, tmp_path, monkeypatch) -> None:
    path = library(tmp_path / folder)
    assert not is_installed_path(str(path))  # no import would find it
    monkeypatch.syspath_prepend(str(tmp_path / folder))
    assert is_installed_path(str(path))
    assert is_installed(importlib.import_module("their_lib").Kind)
    del sys.modules["their_lib"]


def test_a_file_beside_an_installed_package_is_the_users(tmp_path, monkeypatch) -> None:
    library(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "their_lib" / "mine.py").write_text("")
    assert not is_installed_path(str(tmp_path / "mine.py"))
    assert not is_installed_path(str(tmp_path / "their_lib" / "mine.py"))


def test_an_editable_package_and_a_working_copy_are_the_users(tmp_path, monkeypatch) -> None:
    editable = library(tmp_path / "one", origin={"url": "", "dir_info": {"editable": True}})
    unlisted = library(tmp_path / "two", record="")
    about = tmp_path / "two" / "their_lib.egg-info"
    about.mkdir()
    (about / "SOURCES.txt").write_text("their_lib/__init__.py\n")
    for path in (editable, unlisted):
        monkeypatch.syspath_prepend(str(path.parents[1]))
        assert not is_installed_path(str(path))


def test_files_that_are_linked_into_a_folder_of_packages_are_installed_if_listed(
    tmp_path, monkeypatch
) -> None:
    cached = library(tmp_path / "cache")
    folder = tmp_path / "site-packages"
    linked = library(folder)
    linked.unlink()
    linked.symlink_to(cached)
    (folder / "mine.py").symlink_to(tmp_path / "mine.py")
    monkeypatch.syspath_prepend(str(folder))
    assert is_installed_path(str(linked))
    assert not is_installed_path(str(folder / "mine.py"))


def test_a_folder_whose_name_begins_as_that_of_python_is_the_users() -> None:
    import sysconfig

    assert is_installed_path(f"{sysconfig.get_path('stdlib')}/json/__init__.py")
    assert not is_installed_path(f"{sysconfig.get_path('stdlib')}-mine/train.py")
