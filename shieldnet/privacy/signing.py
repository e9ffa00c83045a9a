"""Keyed hashes that show whether a holder of the key wrote a guarantee or checkpoint."""

import hmac
import json
import os
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from shieldnet.core.errors import ConfigError

KEY_VARIABLE = "SHIELDNET_KEY"
_MIN_KEY_BYTES = 16


def key_of_environment() -> bytes | None:
    """Returns the key in the environment variable SHIELDNET_KEY, or None.

    Errors: ConfigError for an invalid key.
    """
    text = os.environ.get(KEY_VARIABLE)
    if not text:
        return None
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < _MIN_KEY_BYTES:
        raise ConfigError(
            f"Expected {KEY_VARIABLE} as at least {2 * _MIN_KEY_BYTES} hexadecimal digits. Make "
            'one with: python -c "import secrets; print(secrets.token_hex(32))"'
        )
    return key


def mac(key: bytes, content: bytes) -> bytes:
    """Returns the HMAC-SHA256 of bytes."""
    return hmac.new(key, content, sha256).digest()


def signature_of(claimed: Mapping[str, Any]) -> dict[str, str]:
    """Returns the signature field of a document; empty without a key."""
    key = key_of_environment()
    return {} if key is None else {"signature": mac(key, _canonical(claimed)).hex()}


def verify(claimed: Mapping[str, Any], signature: object) -> str:
    """Returns ``signed``, or ``unsigned`` if there is no signature or no key to check it.

    Errors: ConfigError for a signature that was not made with the environment's key.
    """
    key = key_of_environment()
    if key is None or signature is None:
        return "unsigned"
    expected = mac(key, _canonical(claimed)).hex()
    if not (
        isinstance(signature, str) and hmac.compare_digest(signature.encode(), expected.encode())
    ):
        raise ConfigError(
            f"The guarantee's signature does not match the key in {KEY_VARIABLE}: the file was "
            "changed, or signed with another key. Take the file that finetune wrote."
        )
    return "signed"


def _canonical(claimed: Mapping[str, Any]) -> bytes:
    text = json.dumps(claimed, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return b"shieldnet guarantee " + text.encode()
