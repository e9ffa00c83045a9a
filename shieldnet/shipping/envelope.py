"""Who wrote a manifest: an Ed25519 signature in a DSSE envelope."""

import base64
import binascii
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from shieldnet.core.checks import optional
from shieldnet.core.errors import ConfigError, DataError, VerificationFailed
from shieldnet.files.documents import parse_json
from shieldnet.shipping.parts import MANIFEST, SIGNATURE, written

Key = str | Path | bytes
"""A PEM file, or its content: bytes, or a text with ``-----BEGIN`` in it."""

_TYPE = "application/vnd.in-toto+json"
_SIGNATURE_BYTES = 64
_MAX_KEY_BYTES = 2**16
_KEY_ID = re.compile(r"[0-9a-f]{64}")
_BEGIN = "-----BEGIN"
_MAKE = (
    "Make a pair with: openssl genpkey -algorithm ed25519 -out key.pem; "
    "openssl pkey -in key.pem -pubout -out public.pem"
)


def signed(manifest: bytes, key: Key) -> bytes:
    """Returns the envelope of a manifest, signed with a private key.

    Errors: ConfigError for what is no private Ed25519 key.
    """
    private = private_key(key)
    return _envelope(manifest, _key_id(private.public_key()), private.sign(_encoded(manifest)))


def key_id(envelope: bytes, manifest: bytes) -> str:
    """Returns which key an envelope says that it was signed with; nothing of it is believed.

    Errors: VerificationFailed for what is no envelope of this manifest.
    """
    return _parts(envelope, manifest)[0]


def require_signed(envelope: bytes, manifest: bytes, public_key: Key) -> str:
    """Returns the name of the key with which the envelope's manifest was signed.

    Errors: VerificationFailed where it was not signed with it; ConfigError for what is no key.
    """
    public = _public(public_key)
    invalid = optional("cryptography.exceptions", extra="sign").InvalidSignature
    name, signature = _parts(envelope, manifest)
    own = _key_id(public)
    if name != own:
        raise VerificationFailed(
            f"{SIGNATURE} is of another key: it names {name[:16]}, the given one is {own[:16]}."
        )
    try:
        public.verify(signature, _encoded(manifest))
    except invalid as forged:
        raise VerificationFailed(
            f"{SIGNATURE} is not the signature of {MANIFEST} by the given key: one of them was "
            "changed."
        ) from forged
    return own


def _encoded(manifest: bytes) -> bytes:
    """Returns what is signed: DSSE's pre-authentication encoding."""
    kind = _TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(manifest), manifest)


def _envelope(manifest: bytes, name: str, signature: bytes) -> bytes:
    return written(
        {
            "payload": base64.b64encode(manifest).decode(),
            "payloadType": _TYPE,
            "signatures": [{"keyid": name, "sig": base64.b64encode(signature).decode()}],
        }
    )


def _parts(envelope: bytes, manifest: bytes) -> tuple[str, bytes]:
    """Returns the key's name and the signature of an envelope of exactly this manifest."""
    try:
        document = parse_json(envelope, SIGNATURE, "envelope")
    except DataError as broken:
        raise VerificationFailed(str(broken)) from broken
    if document.get("payloadType") != _TYPE:
        raise VerificationFailed(
            f"{SIGNATURE} is over another type: expected {_TYPE}, got "
            f"{document.get('payloadType')!r:.80}."
        )
    signatures = document.get("signatures")
    only = signatures[0] if isinstance(signatures, list) and len(signatures) == 1 else None
    name, text = (only.get("keyid"), only.get("sig")) if isinstance(only, dict) else (None, None)
    signature = _decoded(text)
    if not (isinstance(name, str) and _KEY_ID.fullmatch(name)) or len(signature) != (
        _SIGNATURE_BYTES
    ):
        raise VerificationFailed(f"{SIGNATURE} has not exactly one Ed25519 signature with its key.")
    if _decoded(document.get("payload")) != manifest:
        raise VerificationFailed(f"{SIGNATURE} is the signature of another manifest.")
    if _envelope(manifest, name, signature) != envelope:
        raise VerificationFailed(f"{SIGNATURE} is not as shieldnet writes it.")
    return name, signature


def _decoded(text: object) -> bytes:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        return b""


def private_key(key: Key) -> Any:
    """Reads a private Ed25519 key; ConfigError for anything else, which never shows the key."""
    serialization = optional("cryptography.hazmat.primitives.serialization", extra="sign")
    expected = optional("cryptography.hazmat.primitives.asymmetric.ed25519", extra="sign")
    content = _pem(key)
    if b"PUBLIC KEY" in content:
        raise ConfigError("Expected a private key to sign with, got a public one.")
    try:
        loaded = serialization.load_pem_private_key(content, None)
    except TypeError:
        raise ConfigError(
            "The private key has a passphrase. Give it without: openssl pkey -in key.pem -out "
            "plain.pem, in a folder that nobody else reads."
        ) from None
    except Exception:  # of cryptography, which has no common base; its text may show the key
        raise ConfigError(f"Expected a private Ed25519 key as a PEM file. {_MAKE}") from None
    return _ed25519(loaded, expected.Ed25519PrivateKey)


def _public(key: Key) -> Any:
    serialization = optional("cryptography.hazmat.primitives.serialization", extra="sign")
    expected = optional("cryptography.hazmat.primitives.asymmetric.ed25519", extra="sign")
    content = _pem(key)
    if b"PRIVATE KEY" in content:
        raise ConfigError(
            "Expected a public key to verify with, got a private one, which stays where it signs. "
            "openssl pkey -in key.pem -pubout -out public.pem"
        )
    try:
        loaded = serialization.load_pem_public_key(content)
    except Exception:  # of cryptography, which has no common base
        raise ConfigError(f"Expected a public Ed25519 key as a PEM file. {_MAKE}") from None
    return _ed25519(loaded, expected.Ed25519PublicKey)


def _ed25519(loaded: object, kind: type) -> Any:
    if not isinstance(loaded, kind):
        raise ConfigError(f"Expected an Ed25519 key, got {type(loaded).__name__}. {_MAKE}")
    return loaded


def _pem(key: Key) -> bytes:
    """Returns the content of a key. No error shows the argument where it may be a key itself."""
    if isinstance(key, bytes):
        return key
    if isinstance(key, str) and _BEGIN in key:
        return key.encode()
    if _BEGIN in str(key):
        raise ConfigError(
            "Expected the path of a file that holds the key, got the key itself: give "
            "key.pem, not what is in it. A command line is visible to other users of the machine."
        )
    try:
        with Path(key).open("rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except (OSError, ValueError) as missing:  # whose text has the argument in it
        reason = getattr(missing, "strerror", None) or "this is no path"
    raise ConfigError(f"Cannot read the key{_shown(key)}: {reason}.")


def _shown(path: str | Path) -> str:
    """Returns a path for a message; nothing for what may be a key: base64 and hex have no dot."""
    text = str(path)
    is_path = "." in Path(path).name or Path(path).is_absolute()
    return f" {text}" if is_path and text.isprintable() and _BEGIN not in text else ""


def _key_id(public: Any) -> str:
    serialization = optional("cryptography.hazmat.primitives.serialization", extra="sign")
    content = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return sha256(content).hexdigest()
