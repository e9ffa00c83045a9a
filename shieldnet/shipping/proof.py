"""The certificate of a hardened folder: bounds, formulas, and what they do not cover."""

import math
from collections.abc import Mapping
from typing import Any

from shieldnet.core.checks import whole
from shieldnet.core.errors import DataError
from shieldnet.files.documents import parse_json
from shieldnet.privacy.certificate import LAYOUT, NOT_COVERED
from shieldnet.shield.settings import Extent, ShieldSettings
from shieldnet.shield.stated import certificate
from shieldnet.shipping.parts import CERTIFICATE

SCHEMA = "shieldnet.certificate/1"
_BOUNDS = ("bits", "mu", "pure", "center")
_FORMULAS = {
    "reconstruction": (
        "P[success] <= min(1, prior * 2^bits, Phi(Phi^-1(prior) + center), "
        "prior / (prior + (1 - prior) * e^-pure))"
    ),
    "distinguish": (
        "TPR <= min(1, Phi(Phi^-1(FPR) + mu), FPR + 2^bits - 1, FPR * e^pure, "
        "1 - (1 - FPR) * e^-pure)"
    ),
    "queries": "of n answers: n * bits, sqrt(n) * mu, n * pure, sqrt(n) * center",
}
_INFINITE = "infinite"
_CLOSE = 1e-9  # relative: logarithms of another machine may differ in their last digits
_MAX_SIZE = 2**31
_MAX_PARTS = 1000


def document_of(settings: ShieldSettings, extent: Extent, model: str) -> dict[str, Any]:
    """Returns the certificate as JSON takes it. model: the name of its class."""
    proven = certificate(settings, settings.describe(model), extent, queries=1)
    return {
        "schema": SCHEMA,
        "shield": proven.shield,
        "extent": _plain(extent),
        "bounds": {name: _shown(getattr(proven.cost, name)) for name in _BOUNDS},
        "formulas": dict(_FORMULAS),
        "holds_for": "one answer, every prior, attack and strategy of asking",
        "not_covered": [*NOT_COVERED, *([LAYOUT] if proven.positions > 1 else [])],
        "text": str(proven),
    }


def read_certificate(content: bytes) -> dict[str, Any]:
    """Reads ``certificate.json``; raises DataError for what has no schema or extent."""
    document = parse_json(content, CERTIFICATE, "certificate")
    if document.get("schema") != SCHEMA:
        raise DataError(f"Expected schema {SCHEMA} in {CERTIFICATE}.")
    extent_of(document)
    return document


def extent_of(document: Mapping[str, Any]) -> Extent:
    """Returns the extent that a certificate is about; raises DataError or ConfigError for none."""
    return _extent(document.get("extent"), 1)


def differences(claimed: Mapping[str, Any], computed: Mapping[str, Any]) -> list[str]:
    """Names the fields in which two certificates differ."""
    names = sorted(claimed.keys() | computed.keys())
    return [
        name
        for name in names
        if name not in claimed or name not in computed or not _same(claimed[name], computed[name])
    ]


def _same(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_CLOSE, abs_tol=_CLOSE)
    return type(one) is type(other) and one == other


def _plain(extent: Extent) -> dict[str, Any]:
    return {
        "classes": extent.classes,
        "positions": list(extent.positions),
        "fields": {
            path: None if part is None else _plain(part) for path, part in extent.fields.items()
        },
        "any_number": extent.any_number,
    }


def _extent(table: object, depth: int) -> Extent:
    names = {"classes", "positions", "fields", "any_number"}
    if not (isinstance(table, dict) and table.keys() == names):
        raise DataError(f"Expected an extent of {', '.join(sorted(names))} in {CERTIFICATE}.")
    positions, parts, any_number = table["positions"], table["fields"], table["any_number"]
    fits = isinstance(positions, list) and isinstance(parts, dict) and isinstance(any_number, bool)
    if not fits or max(len(positions), len(parts)) > _MAX_PARTS or (parts and depth == 0):
        raise DataError(f"{CERTIFICATE} has an extent that no answer has.")
    for size in (table["classes"], *positions):
        whole("size", size, low=1, high=_MAX_SIZE)
    inside = {
        path: None if part is None else _extent(part, depth - 1) for path, part in parts.items()
    }
    return Extent(table["classes"], tuple(positions), inside, any_number)


def _shown(bound: float) -> float | str:
    return _INFINITE if math.isinf(bound) else float(bound)
