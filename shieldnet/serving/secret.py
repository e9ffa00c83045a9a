"""The ledger's own key: it hashes clients' names and seals records."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from shieldnet.core.errors import ConfigError

VARIABLE = "SHIELDNET_LEDGER_KEY"
_BYTES = 32


def key_of(given: str | bytes | None, url: str) -> bytes:
    """Returns the key of a ledger: the given one, the environment's, or that of SQLite's file.

    Errors: ConfigError for a key that is not 32 bytes, for none, and for the missing key file of a
    SQLite ledger that is there.
    """
    if isinstance(given, bytes):
        return _checked(given, "key")
    if given is not None:
        return _from_hex(given, "key")
    if text := os.environ.get(VARIABLE):
        return _from_hex(text, VARIABLE)
    if url.startswith("sqlite:///"):
        return _beside(Path(url.removeprefix("sqlite:///")))
    raise ConfigError(
        f"Expected a key, which hashes clients' names and seals the records: set {VARIABLE} to 64 "
        'hexadecimal digits, the same for every server. Make one with: python -c "import secrets; '
        'print(secrets.token_hex(32))"'
    )


def _checked(key: bytes, name: str) -> bytes:
    if len(key) != _BYTES:
        raise ConfigError(f"Expected {name} of {_BYTES} bytes, got {len(key)}.")
    return key


def _from_hex(text: str, name: str) -> bytes:
    try:
        key = bytes.fromhex(text.strip())
    except (ValueError, AttributeError):
        key = b""
    if len(key) != _BYTES:
        raise ConfigError(f"Expected {name} as {2 * _BYTES} hexadecimal digits.")
    return key


def _beside(ledger: Path) -> bytes:
    path = ledger.with_name(f"{ledger.name}.key")
    if not path.exists():
        if ledger.exists() and ledger.stat().st_size:
            raise ConfigError(
                f"The key of the ledger {ledger} is missing: expected it in {path}, or in "
                f"{VARIABLE}. Without it no client of this ledger is known again."
            )
        _make(path)
    try:
        return _from_hex(path.read_text(encoding="ascii"), str(path))
    except (OSError, UnicodeDecodeError) as failed:
        raise ConfigError(f"The key of the ledger cannot be read from {path}: {failed}") from failed


def _make(path: Path) -> None:
    """Makes a key file that only its owner may read; the first of several processes wins."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(f"{secrets.token_hex(_BYTES)}\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process made it in the meantime
            os.link(draft, path)
        draft.unlink()
    except OSError as failed:
        raise ConfigError(
            f"The key of the ledger cannot be written to {path}: {failed}"
        ) from failed
