"""A folder written whole or not at all, beside the old one and then in its place."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from shieldnet.core.errors import ConfigError
from shieldnet.shipping.parts import MANIFEST
from shieldnet.shipping.reading import holds_artifact


def require_free(folder: Path, *, force: bool) -> None:
    """Returns where a hardened folder may be written; raises ConfigError before long work.

    Nothing is there, or an empty folder; with ``force``, a hardened folder and nothing beside it.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file: name a folder that there is not.")
    if next(folder.iterdir(), None) is None:
        return
    if not force:
        raise ConfigError(
            f"{folder} is there already, and is not empty. Name another folder, or take --force "
            "(force=True), which replaces a hardened folder."
        )
    if not holds_artifact(folder):
        raise ConfigError(
            f"{folder} is no hardened folder, or holds other files beside those of its {MANIFEST}: "
            "--force does not delete these. Move them away, or name another folder."
        )


def write_folder(files: Mapping[str, bytes], folder: Path, *, force: bool) -> None:
    """Puts files into a folder of their own, which then stands in the old one's place.

    A run that fails leaves nothing behind, and the old folder as it was.
    """
    target = Path(os.path.realpath(folder))
    made = _made_parents(target.parent)
    beside = target.parent / f".{target.name}.{secrets.token_hex(8)}"
    try:
        beside.mkdir()
        for name, content in files.items():
            _write(beside / name, content)
        require_free(folder, force=force)
        _put(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _put(beside: Path, target: Path) -> None:
    """Renames a folder to the name of another, which is taken away and comes back on failure."""
    if not target.exists():
        beside.rename(target)
        return
    old = beside.with_name(f"{beside.name}.old")
    target.rename(old)
    try:
        beside.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _made_parents(parent: Path) -> list[Path]:
    """Makes a folder with those above it; returns what was not there, the innermost first."""
    missing = []
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    for one in reversed(missing):
        one.mkdir()
    return missing


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
