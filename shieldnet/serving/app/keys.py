"""API keys: a file of the hashes of random keys, each under the name of its client."""

import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import tomlkit
from tomlkit.exceptions import TOMLKitError

from shieldnet.core.errors import ConfigError, DataError
from shieldnet.files.sizes import require_bytes, require_file

_MAX_BYTES = 2**22
_VERSION = 1
_PREFIX = "sha256:"
_RANDOM_BYTES = 32
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MAX_KEY = 200  # characters that are worth hashing


def _hash_of(key: str) -> str:
    """Returns the hash of a key, which needs no salt: a key has 256 random bits."""
    return _PREFIX + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class ApiKeys:
    """Holds the hashes of every client's keys, by the client's name.

    A client may have several, while one replaces another; its budget is one.
    """

    hashes: Mapping[str, tuple[str, ...]] = field(repr=False)

    def __post_init__(self) -> None:
        found: set[str] = set()
        for name, hashes in self.hashes.items():
            _require_name(name)
            for one in hashes:
                if not (isinstance(one, str) and _HASH.fullmatch(one)) or one in found:
                    raise DataError(
                        f"Expected the keys of {name} as different hashes, each sha256: and 64 "
                        "hexadecimal digits: shieldnet keys add NAME --keys FILE writes one."
                    )
                found.add(one)

    @classmethod
    def load(cls, path: str | Path) -> "ApiKeys":
        """Reads a file that ``shieldnet keys add`` wrote; DataError for anything else."""
        _, hashes = _read(Path(path))
        if not any(hashes.values()):
            raise DataError(f"{path} has no keys: shieldnet keys add NAME --keys {path} makes one.")
        return cls(hashes)

    def client_of(self, key: str | None) -> str | None:
        """Returns whose key it is, None for an unknown one.

        What the time tells of a hash helps nobody: no one can choose a key by its hash.
        """
        if key is None or len(key) > _MAX_KEY:
            return None
        return self._names.get(_hash_of(key))

    @cached_property
    def _names(self) -> dict[str, str]:
        return {one: name for name, hashes in self.hashes.items() for one in hashes}


def add_key(path: str | Path, name: str) -> str:
    """Makes a key of a client, writes its hash into a file, and returns it, this one time.

    The file is made if there is none, readable by its owner alone. Others that add or remove keys
    at the same time wait; an empty file beside it, ``.NAME.lock``, is what they wait for.
    """
    _require_name(name)
    path = Path(path)
    key = secrets.token_urlsafe(_RANDOM_BYTES)
    with _locked(path):
        document, hashes = _read(path) if path.exists() else (tomlkit.document(), {})
        ApiKeys(hashes)
        document["version"] = _VERSION
        if "keys" not in document:
            document["keys"] = tomlkit.table()
        document["keys"][name] = [*hashes.get(name, ()), _hash_of(key)]
        _write(path, tomlkit.dumps(document))
    return key


def remove_keys(path: str | Path, name: str, which: str | None = None) -> int:
    """Takes a client's keys out of a file, or the one whose hash begins so; returns how many.

    which: the first digits of a hash, as ``shieldnet keys list`` shows them.
    Errors: DataError for a client, or a hash, that is not in the file, and for digits with which
    several begin; the file is left as it is then.
    """
    path = Path(path)
    require_file(path, "keys")
    with _locked(path):
        document, hashes = _read(path)
        ApiKeys(hashes)
        if not hashes.get(name):
            raise DataError(f"There is no key of {name!r:.120} in {path}.")
        gone = [one for one in hashes[name] if which is None or shown(one).startswith(which)]
        if which is not None and len(gone) != 1:
            raise DataError(
                f"Expected the first digits of one hash of {name} in {path}, as shieldnet keys "
                f"list shows them; {len(gone)} begin with them."
            )
        kept = [one for one in hashes[name] if one not in gone]
        if kept:
            document["keys"][name] = kept
        else:
            del document["keys"][name]
        _write(path, tomlkit.dumps(document))
    return len(gone)


def shown(one: str) -> str:
    """Returns the hexadecimal digits of a key's hash."""
    return one.removeprefix(_PREFIX)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file; it stays beside it, as one that is deleted would lock nothing."""
    try:
        import fcntl
    except ImportError:  # Windows: of keys that are added at the same time, one may be lost
        yield
        return
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "Expected the name of a client as up to 100 letters, digits, dots, underscores and "
            f"hyphens, got {name!r:.120}."
        )


def _read(path: Path) -> tuple[tomlkit.TOMLDocument, dict[str, tuple[str, ...]]]:
    require_bytes(require_file(path, "keys"), path, "keys", _MAX_BYTES)
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8"))
    except (TOMLKitError, UnicodeDecodeError) as broken:
        raise DataError(f"{path} is not TOML: {broken}") from broken
    plain = document.unwrap()
    keys = plain.get("keys", {})
    if plain.keys() - {"version", "keys"} or plain.get("version") != _VERSION:
        raise DataError(f"Expected version = {_VERSION} and a table [keys] in {path}.")
    if not (isinstance(keys, dict) and all(isinstance(one, list) for one in keys.values())):
        raise DataError(f"Expected a list of hashes for each name in [keys] of {path}.")
    return document, {name: tuple(hashes) for name, hashes in keys.items()}


def _write(path: Path, text: str) -> None:
    """Replaces a file at once, or leaves it as it is."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
