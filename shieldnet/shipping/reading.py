"""A folder read once into memory: what is hashed is what is parsed, and nothing else is there."""

import os
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from shieldnet.core.errors import DataError, ShieldnetError, VerificationFailed
from shieldnet.shipping.manifest import digests_of, listed
from shieldnet.shipping.parts import LISTING, MANIFEST, PARTS

Result = TypeVar("Result")

_MAX_ENTRIES = 100
_MAX_SHOWN = 3  # faults in a message
_KNOWN = {**PARTS, **LISTING}
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_folder(folder: str | Path) -> dict[str, bytes]:
    """Reads all files of a hardened folder, each once, where they are what the manifest lists.

    Errors: DataError where there is no such folder; VerificationFailed for a file that is missing,
        changed, not listed, no plain file or too large.
    """
    root = Path(folder)
    names = _names(root)
    if MANIFEST not in names:
        raise VerificationFailed(
            f"{root} is no hardened folder: it has no {MANIFEST}. shieldnet harden writes one."
        )
    files = {MANIFEST: _content(root, MANIFEST)}
    digests = listed(files[MANIFEST])
    faults = [f"{name} is missing" for name in digests if name not in names]
    faults += [
        f"{name} is not listed in {MANIFEST}"
        for name in sorted(names)
        if name not in digests and name not in LISTING
    ]
    _refuse(root, faults)
    for name in sorted(names - {MANIFEST}):
        files[name] = _content(root, name)
    found = digests_of({name: files[name] for name in digests})
    _refuse(
        root, [f"{name} was changed" for name, digest in digests.items() if found[name] != digest]
    )
    return files


def from_copy(content: bytes, name: str, read: Callable[[Path], Result]) -> Result:
    """Reads bytes that were checked, by a function that takes a file, from a private copy of them.

    Errors: of the function, which name the file and not the copy.
    """
    with TemporaryDirectory(prefix="shieldnet-") as folder:
        copy = Path(folder) / name
        copy.write_bytes(content)
        try:
            return read(copy)
        except ShieldnetError as broken:
            raise type(broken)(str(broken).replace(str(copy), name)) from broken


def holds_artifact(folder: Path) -> bool:
    """Returns whether a folder holds a hardened model, perhaps damaged, and nothing else."""
    try:
        names = _names(folder)
        digests = listed(_content(folder, MANIFEST)) if MANIFEST in names else {}
    except ShieldnetError:
        return False
    return bool(digests) and names <= {*digests, *LISTING}


def _names(root: Path) -> set[str]:
    """Lists a folder whose entries are plain files that a hardened folder may have."""
    try:
        with os.scandir(root) as entries:
            found = {
                entry.name: entry.stat(follow_symlinks=False)
                for entry in islice(entries, _MAX_ENTRIES)
            }
    except NotADirectoryError as no_folder:
        raise DataError(f"Expected a hardened folder, got the file {root}.") from no_folder
    except OSError as missing:
        raise DataError(f"Cannot read the folder {root}: {missing.strerror}.") from missing
    _refuse(
        root,
        [fault for name in sorted(found) for fault in _faults(name, found[name].st_mode)],
    )
    return set(found)


def _faults(name: str, mode: int) -> Iterator[str]:
    """Says why an entry of a folder is none of a hardened folder's files."""
    kind = next((words for is_one, words in _KINDS if is_one(mode)), None)
    shown = name if name in _KNOWN else ascii(name)[:80]
    if kind is not None:
        yield f"{shown} is {kind}"
    elif name in _KNOWN:
        return
    elif (alike := _alike(name)) is not None:
        yield f"{shown} differs from {alike} in case or in Unicode alone"
    elif name.startswith("."):
        yield f"{shown} is hidden and is not listed in {MANIFEST}"
    else:
        yield f"{shown} is not listed in {MANIFEST}"


def _alike(name: str) -> str | None:
    plain = unicodedata.normalize("NFKC", name).casefold()
    return next((known for known in _KNOWN if known.casefold() == plain), None)


def _refuse(root: Path, faults: list[str]) -> None:
    if faults:
        more = len(faults) - _MAX_SHOWN
        rest = f"; and {more} more" if more > 0 else ""
        raise VerificationFailed(
            f"{root} does not hold what was written: {'; '.join(faults[:_MAX_SHOWN])}{rest}."
        )


def _content(root: Path, name: str) -> bytes:
    """Reads a plain file, whose size is asked first; never through a link."""
    most = _KNOWN[name].max_bytes
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(root / name, flags)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise VerificationFailed(f"{name} is no plain file.")
            content = b"" if status.st_size > most else file.read(most + 1)
    except OSError as unreadable:
        raise VerificationFailed(f"Cannot read {name}: {unreadable.strerror}.") from unreadable
    if status.st_size > most or len(content) > most:
        raise VerificationFailed(f"{name} has more than {most} bytes: it is not read.")
    return content


def total_bytes(files: Mapping[str, bytes]) -> int:
    """Adds up the sizes of files."""
    return sum(map(len, files.values()))
