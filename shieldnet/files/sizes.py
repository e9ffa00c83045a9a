"""How much a file may ask for, asked before any memory is given."""

import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from shieldnet.core.errors import DataError

MAX_FILE_BYTES = 8 * 2**30
"""More than this, decoded, is refused: it would not fit beside the attacks on it."""
MAX_FILES = 1_000_000

_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def require_file(path: Path, role: str) -> int:
    """Returns the size of a plain file, or raises DataError where there is none."""
    if not path.is_file():
        raise DataError(f"Cannot read the {role} from {path}: there is no such file.")
    return path.stat().st_size


def require_bytes(count: int, path: object, role: str, most: int | None = None) -> None:
    """Raises DataError where so many bytes are more than may be asked for."""
    most = MAX_FILE_BYTES if most is None else most
    if not 0 <= count <= most:
        raise DataError(
            f"The {role} in {path} would take {count} bytes, more than the {most} that are read "
            "from a file. Give a part of it, or package.module:factory."
        )


@contextmanager
def opened_archive(path: Path, role: str) -> Iterator[zipfile.ZipFile]:
    """Opens a zip archive whose entries are plain, few, named once and inside of it.

    Errors: DataError for a name that leads out of the archive, stands twice or is encrypted, and
        for more than may be read.
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
        raise DataError(f"{path} is no archive that can be read: {broken}") from broken


def content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Reads an entry; one that holds more than it declared is cut there, and its sum is wrong."""
    with archive.open(entry) as stream:
        return stream.read(entry.file_size)


def _require_plain(entries: Sequence[zipfile.ZipInfo], path: Path, role: str) -> None:
    names = [entry.filename for entry in entries]
    if len(names) > MAX_FILES:
        raise DataError(f"{path} has {len(names)} entries, more than {MAX_FILES}.")
    if len(set(names)) < len(names):
        raise DataError(f"{path} has two entries of one name: which is meant cannot be told.")
    for entry in entries:
        steps = PurePosixPath(entry.filename).parts
        if "\\" in entry.filename or entry.filename.startswith("/") or ".." in steps:
            raise DataError(f"{path} has an entry that leads out of it: {entry.filename!r}.")
        if entry.flag_bits & 1 or entry.compress_type not in _PLAIN:
            raise DataError(f"{path} has an entry that is encrypted or packed in a rare way.")
    require_bytes(sum(entry.file_size for entry in entries), path, role)


def inside(folder: Path, path: Path) -> bool:
    """Says whether a path stays within a folder, links followed."""
    return os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)
