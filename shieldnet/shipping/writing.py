"""A folder written whole or not at all, beside the old one and then in its place."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from shieldnet.core.errors import ConfigError
from shieldnet.shipping.parts import LISTING, MANIFEST, PARTS
from shieldnet.shipping.reading import holds_artifact

_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP)
_MAX_BYTES = 255  # of a name, on every usual file system
_MAX_NAME = 200  # characters, so that what is added fits into the 255 bytes of a name


_OTHER_FILES = (
    f"is no hardened folder, or holds other files beside those of its {MANIFEST}: --force does "
    "not delete these. Move them away, or name another folder."
)


def require_free(folder: Path, *, force: bool) -> None:
    """Returns where a hardened folder may be written; raises ConfigError before long work.

    Nothing is there, or an empty folder; with ``force``, a hardened folder and nothing beside it.
    """
    with _naming(folder):
        if not os.path.lexists(folder):
            _require_parent(folder)
            return
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file. Name a folder that does not exist yet.")
        if not folder.exists() or _is_empty(folder):
            return
    if not force:
        raise ConfigError(
            f"{folder} already exists and is not empty. Name another folder, or use --force "
            "(force=True) to overwrite a hardened folder."
        )
    if not holds_artifact(folder):
        raise ConfigError(f"{folder} {_OTHER_FILES}")


def write_folder(files: Mapping[str, bytes], folder: Path, *, force: bool) -> None:
    """Puts files into a folder of their own, which then replaces the old one.

    A run that fails leaves nothing behind, and the old folder as it was. The new folder has the
    permissions of the old one.
    """
    target = Path(os.path.realpath(folder))
    with _naming(folder), _made_parents(target.parent):
        beside = target.parent / f".{target.name[:_MAX_NAME]}.{secrets.token_hex(8)}"
        try:
            beside.mkdir()
            for name, content in files.items():
                _write(beside / name, content)
            require_free(folder, force=force)
            _put(beside, target)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def _put(beside: Path, target: Path) -> None:
    """Renames a folder to the name of another, which is taken away and comes back on failure."""
    if not target.exists():
        beside.rename(target)
        return
    beside.chmod(stat.S_IMODE(target.stat().st_mode))
    old = beside.with_name(f"{beside.name}.old")
    target.rename(old)
    try:
        # Here no new file arrives by the old name; one may have since the first look.
        if not (_is_empty(old) or holds_artifact(old)):
            raise ConfigError(f"{target} {_OTHER_FILES}")
        beside.rename(target)
    except BaseException:
        old.rename(target)
        raise
    _remove(old)


def _remove(folder: Path) -> None:
    """Deletes the files of a hardened folder and the folder itself, and never anything else."""
    with contextlib.suppress(OSError):
        for name in (*PARTS, *LISTING):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def _require_parent(folder: Path) -> None:
    """Raises ConfigError for a name that cannot be, and where the nearest parent is no folder."""
    whole = Path(os.path.abspath(folder))
    if any(len(os.fsencode(part)) > _MAX_BYTES for part in whole.parts):
        raise ConfigError(f"Cannot write {folder!s:.200}: a name has more than {_MAX_BYTES} bytes.")
    parent = next(one for one in whole.parents if one.exists())
    if not parent.is_dir():
        raise ConfigError(f"Cannot write {folder}: {parent} is a file. Name another folder.")


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Turns what the system says of an impossible name into bad input that names the folder."""
    try:
        yield
    except OSError as impossible:
        if impossible.errno not in _NAMES:
            raise
        raise ConfigError(f"Cannot write {folder!s:.200}: {impossible.strerror}.") from impossible


@contextmanager
def _made_parents(parent: Path) -> Iterator[None]:
    """Makes a folder with those above it, and takes them back where what follows fails."""
    missing, made = [], []
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    try:
        for one in reversed(missing):
            one.mkdir()
            made.append(one)
        yield
    except BaseException:
        for one in reversed(made):
            with contextlib.suppress(OSError):
                one.rmdir()
        raise


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
