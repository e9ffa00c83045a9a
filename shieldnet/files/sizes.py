"""Limits on the size of files, checked before memory is allocated."""

import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from shieldnet.core.errors import DataError

MAX_FILE_BYTES = 8 * 2**30
"""Largest decoded size: more would not fit in memory together with the attacks."""
MAX_FILES = 1_000_000

_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def require_file(path: Path, role: str) -> int:
    """Returns the size of a plain file; raises DataError if there is none."""
    if not path.is_file():
        raise DataError(f"Cannot read the {role} from {path}: no such file.")
    return path.stat().st_size


def require_bytes(count: int, path: object, role: str, most: int | None = None) -> None:
    """Raises DataError if ``count`` bytes are more than the limit."""
    most = MAX_FILE_BYTES if most is None else most
    if not 0 <= count <= most:
        raise DataError(
            f"The {role} in {path} would take {count} bytes, above the limit of {most} for a file. "
            "Pass a part of it, or package.module:factory."
        )


@contextmanager
def opened_archive(path: Path, role: str) -> Iterator[zipfile.ZipFile]:
    """Opens a zip archive with plain, unique, few entries.

    Errors: DataError for an entry that leads out of the archive, occurs twice or is encrypted, and
        for too much data.
    """
    require_file(path, role)
    try:
        with zipfile.ZipFile(path) as archive:
            _require_plain(archive.infolist(), path, role)
            yield archive
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        OSError,
        RuntimeError,
        UnicodeDecodeError,
        ValueError,
    ) as broken:
        if isinstance(broken, DataError):
            raise
        raise DataError(f"{path} is not a readable archive: {broken}") from broken


def content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Reads an entry; content beyond the declared size is cut, so that the checksum fails."""
    with archive.open(entry) as stream:
        return stream.read(entry.file_size)


def _require_plain(entries: Sequence[zipfile.ZipInfo], path: Path, role: str) -> None:
    names = [entry.filename for entry in entries]
    if len(names) > MAX_FILES:
        raise DataError(f"{path} has {len(names)} entries, more than {MAX_FILES}.")
    if len(set(names)) < len(names):
        raise DataError(f"{path} has two entries with one name, which is ambiguous.")
    for entry in entries:
        steps = PurePosixPath(entry.filename).parts
        if "\\" in entry.filename or entry.filename.startswith("/") or ".." in steps:
            raise DataError(f"{path} has an entry that leads out of it: {entry.filename!r}.")
        if entry.flag_bits & 1 or entry.compress_type not in _PLAIN:
            raise DataError(f"{path} has an entry that is encrypted or in a rare compression.")
    require_bytes(sum(entry.file_size for entry in entries), path, role)


def inside(folder: Path, path: Path) -> bool:
    """Returns whether a path stays within a folder, after following links."""
    return os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)
