"""Everything that is known of one shield, and how it is written down."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from shieldnet.core.statistics import Curve
from shieldnet.findings.finding import Exposed, Finding
from shieldnet.privacy.certificate import Certificate
from shieldnet.privacy.cost import PrivacyCost

_COST = ("bits", "mu", "pure", "center")


@dataclass(frozen=True)
class Subject:
    """Holds everything that is known of one shield.

    features: numbers per input feature, by name. reconstructions: (rows, ...) for the images.
    curves: ROC curves, by what they are about. exposed: row indices of the most exposed records.
    durations_s: seconds of each attack. configuration: a hash that names the shield's settings.
    """

    name: str
    certificate: Certificate
    findings: tuple[Finding, ...]
    untested: tuple[str, ...] = ()
    features: dict[str, Tensor] = field(default_factory=dict)
    reconstructions: Tensor | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    exposed: tuple[Exposed, ...] = ()
    durations_s: dict[str, float] = field(default_factory=dict)
    configuration: str = ""

    def __getitem__(self, name: str) -> Finding:
        for finding in self.findings:
            if finding.name == name:
                return finding
        names = [finding.name for finding in self.findings]
        close = [one for one in names if one.startswith(name)] or get_close_matches(name, names)
        raise KeyError(f"{self.name} has no finding {name}. It has: {', '.join(close or names)}.")

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self.findings)} findings>"

    def document(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        certificate = self.certificate
        bounds = {name: _bound(getattr(certificate.cost, name)) for name in _COST}
        return {
            "name": self.name,
            "configuration": self.configuration,
            "certificate": {
                "shield": certificate.shield,
                "classes": certificate.classes,
                "positions": certificate.positions,
                "size": certificate.size,
                "unbounded": certificate.unbounded,
                **bounds,
                "text": str(certificate),
            },
            "findings": [asdict(finding) for finding in self.findings],
            "untested": list(self.untested),
            "features": {name: numbers(values) for name, values in self.features.items()},
            "reconstructions": numbers(self.reconstructions),
            "curves": {name: asdict(curve) for name, curve in self.curves.items()},
            "exposed": [asdict(records) for records in self.exposed],
            "durations_s": {name: round(taken, 2) for name, taken in self.durations_s.items()},
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Subject":
        """Makes the subject of a document that fits the schema; what older ones lack stays empty.

        Errors: KeyError, TypeError, ValueError for what contradicts itself.
        """
        proven = document["certificate"]
        cost = PrivacyCost(*(_unbound(proven.get(name, "infinite")) for name in _COST))
        curves = document.get("curves", {})
        return cls(
            name=document["name"],
            certificate=Certificate(
                proven["shield"],
                proven["classes"],
                cost,
                positions=proven.get("positions", 1),
                size=proven.get("size", ""),
                unbounded=proven.get("unbounded", ""),
            ),
            findings=tuple(Finding.read(finding) for finding in document["findings"]),
            untested=tuple(document["untested"]),
            features={name: tensor(values) for name, values in document["features"].items()},
            reconstructions=optional_tensor(document["reconstructions"]),
            curves={name: Curve.read(curve) for name, curve in curves.items()},
            exposed=tuple(Exposed.read(records) for records in document.get("exposed", ())),
            durations_s=dict(document.get("durations_s", {})),
            configuration=document.get("configuration", ""),
        )


def numbers(values: Tensor | None) -> Any:
    """Returns a tensor as nested lists with four decimals."""
    return None if values is None else (values.double() * 1e4).round().div(1e4).tolist()


def tensor(values: Any) -> Tensor:
    """Returns nested lists as a float tensor; raises ValueError where ragged or not finite."""
    numbers = torch.tensor(values, dtype=torch.float32)
    if not numbers.isfinite().all():
        raise ValueError("a number is too large")
    return numbers


def optional_tensor(values: Any) -> Tensor | None:
    """Returns nested lists as a float tensor, or None."""
    return None if values is None else tensor(values)


def _bound(value: float) -> float | str:
    return "infinite" if value == float("inf") else value


def _unbound(value: float | str) -> float:
    return float("inf") if value == "infinite" else float(value)
