"""What was measured and what is proven, side by side, with what nobody looked at."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shieldnet.auditing.policy import Policy, Verdict
from shieldnet.auditing.render import page
from shieldnet.certificate import Certificate
from shieldnet.errors import ConfigError, DataError, PolicyFailed, PolicyInconclusive
from shieldnet.finding import Finding, Threat, goes_by
from shieldnet.price import Price, rounded_up
from shieldnet.training.accountant import Guarantee

SCHEMA = "shieldnet.report/1"
BARE = "bare"
"""The name of the undefended model, which every report measures first."""


@dataclass(frozen=True)
class Subject:
    """Holds everything that is known of one shield.

    features: numbers per input feature, by name. reconstructions: (rows, ...) for the pictures.
    """

    name: str
    certificate: Certificate
    findings: tuple[Finding, ...]
    untested: tuple[str, ...] = ()
    features: dict[str, Tensor] = field(default_factory=dict)
    reconstructions: Tensor | None = None

    def __getitem__(self, name: str) -> Finding:
        for finding in self.findings:
            if finding.name == name:
                return finding
        names = ", ".join(finding.name for finding in self.findings)
        raise KeyError(f"{self.name} has no finding {name}. It has: {names}.")


@dataclass(frozen=True)
class Report:
    """Holds an audit: the bare model first, then every shield.

    ``findings``, ``certificate`` and ``untested`` are the last shield's, the one that is to be
    released; ``report["name"]`` gives any other. environment: versions; hashes: of model and data;
    inputs: rows for the pictures, left out unless asked for. guarantee: what is proven of the
    model's training.
    """

    title: str
    subjects: tuple[Subject, ...]
    seed: int
    duration_s: float
    columns: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    inputs: Tensor | None = None
    guarantee: Guarantee | None = None

    def __getitem__(self, name: str) -> Subject:
        for subject in self.subjects:
            if subject.name == name:
                return subject
        names = ", ".join(subject.name for subject in self.subjects)
        raise KeyError(f"The report has no shield {name}. It has: {names}.")

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Returns what was measured on the shield to be released."""
        return self.subjects[-1].findings

    @property
    def certificate(self) -> Certificate:
        """Returns what is proven of the shield to be released."""
        return self.subjects[-1].certificate

    @property
    def untested(self) -> tuple[str, ...]:
        """Returns what was not measured on the shield to be released, with the reasons."""
        return self.subjects[-1].untested

    def verdict(
        self, policy: Policy | str | Path | None = None, name: str | None = None
    ) -> Verdict:
        """Judges one shield, by default the one to be released, by a policy or the default one."""
        subject = self.subjects[-1] if name is None else self[name]
        limits = as_policy(policy)
        return limits.judge(subject.findings, subject.certificate.price, self.guarantee)

    def require(self, policy: Policy | str | Path | None = None) -> None:
        """Returns if every shield but the bare model passes the policy.

        Errors: PolicyFailed or PolicyInconclusive, with finding, bound and limit.
        """
        limits = as_policy(policy)
        verdicts = {
            subject.name: self.verdict(limits, subject.name)
            for subject in self.subjects
            if subject.name != BARE or len(self.subjects) == 1
        }
        for outcome, error in (("fail", PolicyFailed), ("inconclusive", PolicyInconclusive)):
            lines = [
                f"  {name}: {judgment.words}"
                for name, verdict in verdicts.items()
                for judgment in verdict.judgments
                if judgment.outcome == outcome
            ]
            if lines:
                raise error(f"The policy's outcome is {outcome}:\n" + "\n".join(lines))

    def save(self, path: str | Path, policy: Policy | str | Path | None = None) -> None:
        """Writes the report as .json (versioned) or .html (one self-contained page)."""
        save([self], path, policy)

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Reads a report that ``save`` wrote as .json; raises DataError for anything else."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as missing:
            raise DataError(f"Cannot read {path}: {missing.strerror}.") from missing
        except (json.JSONDecodeError, UnicodeDecodeError) as broken:
            raise DataError(f"{path} is no JSON report: {broken}") from broken
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise DataError(f"Expected a report of schema {SCHEMA} in {path}.")
        reports = document.get("reports")
        if not isinstance(reports, list) or len(reports) != 1:
            raise DataError(f"Expected exactly one report in {path}.")
        try:
            return _from_json(reports[0])
        except (KeyError, TypeError, ValueError, ConfigError) as damaged:
            raise DataError(f"The report in {path} is damaged: {damaged!r}") from damaged

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Returns the headline table: its headers, and a row for each shield.

        Columns that would be empty or infinite for all of them are left out, but for the bits.
        """
        headers = ["shield", "bits", "mu", *(title for _, title in _HEADLINES)]
        rows = [_row(subject) for subject in self.subjects]
        kept = [
            place
            for place, header in enumerate(headers)
            if header == "bits" or any(row[place] not in ("-", "inf") for row in rows)
        ]
        return [headers[place] for place in kept], [[row[place] for place in kept] for row in rows]

    def notes(self) -> list[str]:
        """Returns what the table needs said under it: how to read it, and what nobody tested."""
        claimed = [] if self.guarantee is None else [f"training: {self.guarantee.words}, proven."]
        return [
            *_READING,
            *claimed,
            *(f"not tested: {line}" for line in untested_lines(self.subjects)),
        ]

    def __str__(self) -> str:
        from tabulate import tabulate

        headers, rows = self.rows()
        return "\n".join(
            [self.title, tabulate(rows, headers, disable_numparse=True), *self.notes()]
        )


def as_policy(policy: Policy | str | Path | None) -> Policy:
    """Returns a policy from a value, from a TOML file, or the default one."""
    if policy is None:
        return Policy()
    return policy if isinstance(policy, Policy) else Policy.load(policy)


def save(
    reports: Sequence[Report], path: str | Path, policy: Policy | str | Path | None = None
) -> None:
    """Writes several reports into one .json or .html file."""
    target = Path(path)
    limits = as_policy(policy)
    document = {"schema": SCHEMA, "reports": [_to_json(report, limits) for report in reports]}
    if target.suffix == ".json":
        text = json.dumps(document, indent=1, allow_nan=False)
    elif target.suffix == ".html":
        text = page(document)
    else:
        raise ConfigError(f"Expected a file name that ends in .json or .html, got {target.name}.")
    target.write_text(text, encoding="utf-8")


_HEADLINES = (
    ("accuracy", "accuracy"),
    ("inversion", "leakage"),
    ("averaging.", "averaged"),
    ("reidentification", "rank-1"),
    ("membership.auc", "member AUC"),
)


_READING = (
    "bits, mu: proven upper bounds per answer. The rest: measured lower bounds, 95 % intervals.",
    "leakage: 0 = no more than the label, 1 = the whole input. rank-1: the right record is named.",
)


def untested_lines(subjects: Sequence[Subject]) -> list[str]:
    """Lists what was not tested, each line once, naming the shields where it is not all of them."""
    concerned: dict[str, list[str]] = {}
    for subject in subjects:
        for line in subject.untested:
            concerned.setdefault(line, []).append(subject.name)
    return [
        line if len(names) == len(subjects) else f"{line} ({', '.join(names)})"
        for line, names in concerned.items()
    ]


def _row(subject: Subject) -> list[str]:
    price = subject.certificate.price
    cells = (_cell(subject, name) for name, _ in _HEADLINES)
    return [subject.name, rounded_up(price.bits), rounded_up(price.mu), *cells]


def _cell(subject: Subject, name: str) -> str:
    found = [one for one in subject.findings if goes_by(one.name, name)]
    if not found:
        return "-"
    worst = max(found, key=lambda finding: finding.value)
    return str(worst)


def _to_json(report: Report, policy: Policy) -> dict[str, Any]:
    return {
        "title": report.title,
        "seed": report.seed,
        "duration_s": round(report.duration_s, 1),
        "columns": list(report.columns),
        "environment": report.environment,
        "hashes": report.hashes,
        "inputs": _numbers(report.inputs),
        "guarantee": None if report.guarantee is None else report.guarantee.document(),
        "policy": dict(policy.limits),
        "untested": untested_lines(report.subjects),
        "subjects": [_subject_json(report, subject, policy) for subject in report.subjects],
    }


def _subject_json(report: Report, subject: Subject, policy: Policy) -> dict[str, Any]:
    verdict = report.verdict(policy, subject.name)
    certificate = subject.certificate
    return {
        "name": subject.name,
        "verdict": {
            "outcome": verdict.outcome,
            "judgments": [asdict(judgment) for judgment in verdict.judgments],
        },
        "certificate": {
            "shield": certificate.shield,
            "classes": certificate.classes,
            "bits": _bound(certificate.price.bits),
            "mu": _bound(certificate.price.mu),
            "pure": _bound(certificate.price.pure),
            "center": _bound(certificate.price.center),
            "text": str(certificate),
        },
        "findings": [asdict(finding) for finding in subject.findings],
        "untested": list(subject.untested),
        "features": {name: _numbers(values) for name, values in subject.features.items()},
        "reconstructions": _numbers(subject.reconstructions),
    }


def _from_json(document: dict[str, Any]) -> Report:
    claimed = document.get("guarantee")
    return Report(
        title=document["title"],
        subjects=tuple(_subject(one) for one in document["subjects"]),
        seed=document["seed"],
        duration_s=document["duration_s"],
        columns=tuple(document["columns"]),
        environment=document["environment"],
        hashes=document["hashes"],
        inputs=_tensor(document["inputs"]),
        guarantee=None if claimed is None else Guarantee.read(claimed),
    )


def _subject(document: dict[str, Any]) -> Subject:
    proven = document["certificate"]
    price = Price(
        *(_unbound(proven.get(name, "infinite")) for name in ("bits", "mu", "pure", "center"))
    )
    return Subject(
        name=document["name"],
        certificate=Certificate(proven["shield"], proven["classes"], price),
        findings=tuple(
            Finding(**{**one, "threat": Threat(**one["threat"])}) for one in document["findings"]
        ),
        untested=tuple(document["untested"]),
        features={name: torch.tensor(values) for name, values in document["features"].items()},
        reconstructions=_tensor(document["reconstructions"]),
    )


def _bound(value: float) -> float | str:
    return "infinite" if value == float("inf") else value


def _unbound(value: float | str) -> float:
    return float("inf") if value == "infinite" else float(value)


def _numbers(values: Tensor | None) -> Any:
    if values is None:
        return None
    return (values.double() * 1e4).round().div(1e4).tolist()


def _tensor(values: Any) -> Tensor | None:
    return None if values is None else torch.tensor(values)
