"""Which files a hardened folder may hold: these, and no others."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from shieldnet.files.documents import MAX_BYTES, MAX_TOML_BYTES
from shieldnet.files.sizes import MAX_FILE_BYTES

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
WEIGHTS = "weights.safetensors"
ONNX = "model.onnx"
TRITON_VERSION = "1"
"""Name of a hardened folder in a model of a Triton repository."""
PROGRAM = "model.pt2"
SHIELD = "shield.toml"
MODEL = "model.json"
CERTIFICATE = "certificate.json"
CERTIFICATE_TEXT = "certificate.txt"
REPORT = "report.json"
POLICY = "policy.toml"
README = "README.md"

_SMALL = 2**20


@dataclass(frozen=True)
class Part:
    """Says of a file what it is, how many bytes it may have, and whether it must be there."""

    about: str
    max_bytes: int
    required: bool = False


PARTS: Mapping[str, Part] = MappingProxyType(
    {
        CERTIFICATE: Part("what is proven of an answer, in numbers and formulas", _SMALL),
        CERTIFICATE_TEXT: Part("the same in words", _SMALL),
        MODEL: Part("how the model is made", _SMALL, required=True),
        ONNX: Part("a graph in ONNX's form", MAX_FILE_BYTES),
        PROGRAM: Part("a graph in torch's form", MAX_FILE_BYTES),
        POLICY: Part("the limits that the report meets", MAX_TOML_BYTES),
        README: Part("what the folder is", _SMALL, required=True),
        REPORT: Part("what was measured", MAX_BYTES),
        SHIELD: Part("the defenses and their settings", MAX_TOML_BYTES, required=True),
        WEIGHTS: Part("weights and buffers of the model", MAX_FILE_BYTES),
    }
)
"""What a manifest may list, by name. A new file of the folder takes a line here."""

LISTING: Mapping[str, Part] = MappingProxyType(
    {
        MANIFEST: Part("the list of the files, with their hashes", _SMALL, required=True),
        SIGNATURE: Part("the signature of the list", 2 * _SMALL),
    }
)
"""What no manifest lists: itself and its signature."""

GRAPHS = (ONNX, PROGRAM)
"""Files that hold a whole graph; ``model.json`` says of each whether a shield is in it."""


def written(document: Mapping[str, Any]) -> bytes:
    """Writes a document as JSON whose bytes depend on its content alone."""
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False)
    return f"{text}\n".encode()
