"""The list of a folder's files with their hashes: an in-toto statement, as OpenSSF signs models."""

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from shieldnet.core.errors import DataError, VerificationFailed
from shieldnet.files.documents import parse_json
from shieldnet.shipping.parts import LISTING, MANIFEST, PARTS, written

_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_SUBJECT = "hardened"
_RESOURCE = frozenset(["name", "algorithm", "digest"])
_DIGEST = re.compile(r"[0-9a-f]{64}")


def digests_of(files: Mapping[str, bytes]) -> dict[str, str]:
    """Returns the SHA-256 of each file, as hexadecimal digits."""
    return {name: sha256(files[name]).hexdigest() for name in sorted(files)}


def statement(digests: Mapping[str, str]) -> bytes:
    """Writes the manifest of files by their hashes: equal hashes, equal bytes.

    The statement is that of OpenSSF Model Signing: its subject is the hash of all hashes, in the
    order of the names.
    """
    names = sorted(digests)
    whole = sha256(b"".join(bytes.fromhex(digests[name]) for name in names)).hexdigest()
    return written(
        {
            "_type": _STATEMENT,
            "subject": [{"name": _SUBJECT, "digest": {"sha256": whole}}],
            "predicateType": _PREDICATE,
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                    "ignore_paths": sorted(LISTING),
                },
                "resources": [
                    {"name": name, "algorithm": "sha256", "digest": digests[name]} for name in names
                ],
            },
        }
    )


def listed(content: bytes) -> dict[str, str]:
    """Reads a manifest: the hash of each file by its name.

    Errors: VerificationFailed for whatever ``statement`` would not have written, byte for byte.
    """
    try:
        document = parse_json(content, MANIFEST, "manifest")
    except DataError as broken:
        raise VerificationFailed(str(broken)) from broken
    digests: dict[str, str] = {}
    for resource in _resources(document):
        name, digest = _named(resource)
        if name in digests:
            raise VerificationFailed(f"{MANIFEST} lists {name} twice.")
        digests[name] = digest
    if missing := [name for name, part in PARTS.items() if part.required and name not in digests]:
        raise VerificationFailed(f"{MANIFEST} does not list {', '.join(missing)}.")
    if statement(digests) != content:
        raise VerificationFailed(
            f"{MANIFEST} is not as shieldnet writes it: it has fields, an order or spaces of its "
            "own, or another hash of the whole. Write the folder again with shieldnet harden."
        )
    return digests


def _resources(document: Mapping[str, Any]) -> list[Any]:
    predicate = document.get("predicate")
    resources = predicate.get("resources") if isinstance(predicate, dict) else None
    if document.get("predicateType") != _PREDICATE or not isinstance(resources, list):
        raise VerificationFailed(
            f"{MANIFEST} is no manifest of a hardened folder: expected predicateType {_PREDICATE} "
            "and a list of resources."
        )
    return resources


def _named(resource: object) -> tuple[str, str]:
    """Returns the name and the hash of a file; refuses names that no hardened folder has."""
    if not (isinstance(resource, dict) and resource.keys() == _RESOURCE):
        raise VerificationFailed(
            f"{MANIFEST} has a resource that is not name, algorithm and digest."
        )
    name, algorithm, digest = (resource[key] for key in ("name", "algorithm", "digest"))
    if not (isinstance(name, str) and name in PARTS):
        raise VerificationFailed(
            f"{MANIFEST} lists {name!r:.80}, which no hardened folder has. It may have: "
            f"{', '.join(PARTS)}."
        )
    if algorithm != "sha256" or not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        raise VerificationFailed(f"{MANIFEST} has no SHA-256 of {name}.")
    return name, digest
