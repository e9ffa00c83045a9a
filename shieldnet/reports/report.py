"""What was measured and what is proven, side by side, and what was not tested."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from shieldnet.core.errors import ConfigError, DataError, PolicyFailed, PolicyInconclusive
from shieldnet.findings.finding import Finding
from shieldnet.gate.judging import Judgment, Verdict, beside_bare, helps, suited
from shieldnet.gate.policy import DEFAULT, Policy
from shieldnet.privacy.certificate import Certificate
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.reports.codec import SCHEMA, parsed
from shieldnet.reports.evidence import Evidence, evidence
from shieldnet.reports.formats import as_json, write
from shieldnet.reports.markdown import as_markdown
from shieldnet.reports.subject import Subject, numbers, optional_tensor
from shieldnet.reports.table import notes_of, rows_of
from shieldnet.reports.untested import untested_lines

Limits: TypeAlias = Policy | Mapping[str, float] | str | Path | None
"""What a report is judged by: a policy, limits by name, a TOML file, or None for the default."""
BARE = "bare"
"""The name of the undefended model, which every report measures first."""


@dataclass(frozen=True)
class Report:
    """Holds an audit: the bare model first, then every shield.

    ``findings``, ``certificate`` and ``untested`` are the last shield's, the one that is to be
    released; ``report["name"]`` gives any other. environment: versions; hashes: of model and data;
    inputs: rows for the images, left out unless asked for. guarantee: what is proven of the
    model's training. groups: the subgroups that were given. kind: of the model's answers.
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
    groups: tuple[str, ...] = ()
    kind: str = ""

    def __post_init__(self) -> None:
        names = [subject.name for subject in self.subjects]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"Expected shields of different names, got {names}.")

    def __getitem__(self, name: str) -> Subject:
        for subject in self.subjects:
            if subject.name == name:
                return subject
        names = ", ".join(subject.name for subject in self.subjects)
        raise KeyError(f"The report has no shield {name}. It has: {names}.")

    def __repr__(self) -> str:
        return f"<{self.title}: {', '.join(subject.name for subject in self.subjects)}>"

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

    @property
    def released(self) -> tuple[Subject, ...]:
        """Returns what a policy judges: every shield, and the bare model only where it is alone."""
        alone = len(self.subjects) == 1
        return tuple(subject for subject in self.subjects if alone or subject.name != BARE)

    def verdict(self, policy: Limits = None, name: str | None = None) -> Verdict:
        """Judges one shield, by default the one to be released, by a policy or the default one."""
        subject = self.subjects[-1] if name is None else self[name]
        cost = subject.certificate.cost
        limits = self.policy_for(policy)
        verdict = limits.judge(subject.findings, cost, self.guarantee, self.groups)
        fitting = (suited(one, self.kind, subject.certificate) for one in verdict.judgments)
        verdict = replace(verdict, judgments=tuple(fitting))
        bare = next((part for part in self.subjects if part.name == BARE), subject)
        if bare is subject:
            return verdict
        alone = limits.judge(bare.findings, bare.certificate.cost, self.guarantee, self.groups)
        judgments = (
            beside_bare(judgment, subject.findings, bare.findings, alone.judgments)
            for judgment in verdict.judgments
        )
        return replace(verdict, judgments=tuple(judgments))

    def policy_for(self, policy: Limits = None) -> Policy:
        """Returns the policy that judges it: the default one as its kind of answer needs it."""
        names = (finding.name for subject in self.subjects for finding in subject.findings)
        return as_policy(policy).fitting(names)

    def passes(self, policy: Limits = None) -> Verdict:
        """Judges every shield but the bare model; true only where all of them pass.

        For a test of your own: ``assert report.passes("policy.toml")`` says what broke it.
        """
        limits = as_policy(policy)
        verdicts = {part.name: self.verdict(limits, part.name) for part in self.released}
        return Verdict(
            tuple(
                replace(judgment, words=f"{name}: {judgment.words}")
                for name, verdict in verdicts.items()
                for judgment in verdict.judgments
            ),
            tuple(dict.fromkeys(note for one in verdicts.values() for note in one.notes)),
        )

    def require(self, policy: Limits = None) -> None:
        """Returns if every shield but the bare model passes the policy.

        policy: a ``Policy``, limits by name (``{"max_leakage": 0.1}``), or a TOML file.
        Errors: PolicyFailed or PolicyInconclusive, with finding, bound and limit.
        """
        require([self], policy)

    def evidence(self, policy: Limits = None) -> tuple[Evidence, ...]:
        """Says what speaks for and against the items of OWASP AISVS, MITRE ATLAS, NIST and EDPB.

        policy: limits that count as evidence against where they are broken; none by default.
        """
        broken = {}
        if policy is not None:
            judgments = self.verdict(policy).judgments
            failed = [judgment for judgment in judgments if judgment.outcome == "fail"]
            broken = {judgment.finding: judgment.limit for judgment in failed}
        return evidence(
            self.findings,
            self.certificate.cost,
            self.guarantee,
            is_table=bool(self.columns),
            has_classes=self.kind not in ("values", "embeddings"),
            broken=broken,
        )

    def save(self, path: str | Path, policy: Limits = None) -> None:
        """Writes the report in the form that the file's name asks for.

        policy: that it is judged by; without one nothing is judged, and there is no .xml or .sarif.
        .json (versioned, all of it), .html (one self-contained page), .md (Markdown; a README.md is
        a model card, of which a section is written and the rest is kept), .xml (JUnit), .sarif.
        """
        save([self], path, policy)

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Reads a report that ``save`` wrote as .json; raises DataError for anything else."""
        reports = load_all(path)
        if len(reports) != 1:
            raise DataError(f"Expected exactly one report in {path}, got {len(reports)}.")
        return reports[0]

    @classmethod
    def read(cls, document: dict[str, Any]) -> "Report":
        """Makes the report of a document that fits the schema.

        Errors: KeyError, TypeError, ValueError, OverflowError for what contradicts itself.
        """
        claimed = document.get("guarantee")
        return cls(
            title=document["title"],
            subjects=tuple(Subject.read(subject) for subject in document["subjects"]),
            seed=document["seed"],
            duration_s=document["duration_s"],
            columns=tuple(document["columns"]),
            environment=document["environment"],
            hashes=document["hashes"],
            inputs=optional_tensor(document["inputs"]),
            guarantee=None if claimed is None else Guarantee.read(claimed),
            groups=tuple(document.get("groups", ())),
            kind=document.get("kind", ""),
        )

    def document(self, policy: Policy) -> dict[str, Any]:
        """Returns all of it as JSON takes it, with the policy's verdict."""
        policy = self.policy_for(policy)
        return {
            "title": self.title,
            "seed": self.seed,
            "duration_s": round(self.duration_s, 1),
            "kind": self.kind,
            "columns": list(self.columns),
            "groups": list(self.groups),
            "environment": self.environment,
            "hashes": self.hashes | ({"policy": policy.hash()} if policy.asks else {}),
            "inputs": numbers(self.inputs),
            "guarantee": None if self.guarantee is None else self.guarantee.document(),
            "policy": dict(policy.limits),
            "policy_required": list(policy.required),
            "policy_groups": {name: dict(limits) for name, limits in policy.groups.items()},
            "policy_source": policy.source,
            "policy_lines": dict(policy.lines),
            "outcome": self.passes(policy).outcome,
            "untested": untested_lines(self.subjects),
            "evidence": [asdict(item) for item in self.evidence(policy)],
            "subjects": [
                {**subject.document(), "verdict": self._verdict_document(subject.name, policy)}
                for subject in self.subjects
            ],
        }

    def _verdict_document(self, name: str, policy: Policy) -> dict[str, Any]:
        verdict = self.verdict(policy, name)
        judgments = [asdict(judgment) for judgment in verdict.judgments]
        return {"outcome": verdict.outcome, "judgments": judgments}

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Returns the headline table: its headers, and a row for each shield.

        Columns that would be empty or infinite for all of them are left out, but for the bits.
        """
        return rows_of(self.subjects)

    def notes(self, listed: str = 'report.save("report.html") lists') -> list[str]:
        """Returns what the table needs said under it: how to read it, and what was not tested.

        listed: what lists the rest of what was not tested, with its verb.
        """
        return notes_of(self.subjects, self.kind, self.guarantee, listed)

    def __str__(self) -> str:
        from tabulate import tabulate

        headers, rows = self.rows()
        return "\n".join(
            [self.title, tabulate(rows, headers, disable_numparse=True), *self.notes()]
        )


def as_policy(policy: Limits) -> Policy:
    """Returns a policy from a value, a dict of limits or a TOML file.

    For None or ``"default"`` it is the default one.
    Errors: ConfigError for anything else, and for limits that are unknown or no numbers.
    """
    if policy is None:
        return Policy.load(DEFAULT)
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, Mapping):
        return Policy(policy)
    if not isinstance(policy, str | Path):
        raise ConfigError(
            "Expected a policy as a Policy, a dict of limits ({'max_leakage': 0.1}), the name of a "
            f'TOML file or "default"; got {type(policy).__name__}.'
        )
    return Policy.load(policy)


def load_all(path: str | Path) -> list[Report]:
    """Reads all reports of a .json file; raises DataError for anything else, or for none."""
    documents = parsed(path)["reports"]
    if not documents:
        raise DataError(f"Expected a report in {path}, got none.")
    try:
        return [Report.read(document) for document in documents]
    except (KeyError, TypeError, ValueError, OverflowError) as damaged:
        raise DataError(f"The report in {path} is damaged: {damaged}") from damaged


def require(reports: Sequence[Report], policy: Limits = None) -> None:
    """Returns if every shield of every report passes; raises as ``Report.require`` does."""
    limits, several = as_policy(policy), len(reports) > 1
    judgments = [
        replace(judgment, words=f"{report.title}: {judgment.words}") if several else judgment
        for report in reports
        for judgment in report.passes(limits).judgments
    ]
    verdict = Verdict((*judgments, *_published_twice(reports)))
    if not verdict.broken:
        return
    error = PolicyFailed if verdict.outcome == "fail" else PolicyInconclusive
    lines = [f"\n  {judgment.outcome}: {judgment.words}" for judgment in verdict.broken]
    lines += [f"\n  what helps: {advice}" for advice in helps(verdict.broken)]
    raise error(f"The policy's outcome is {verdict.outcome}:{''.join(lines)}")


def _published_twice(reports: Sequence[Report]) -> Iterator[Judgment]:
    """Yields a failure for every run of which two models are to be released."""
    weights: dict[str, set[str]] = {}
    for report in reports:
        claimed = report.guarantee
        if claimed is not None and claimed.run:
            model = claimed.weights or report.hashes.get("model", "")
            weights.setdefault(claimed.run, set()).add(model)
    for run, models in weights.items():
        if len(models) > 1:
            message = f"{len(models)} different models {published_twice(run)}"
            yield Judgment("proof", "fail", message, "guarantee")


def published_twice(run: str) -> str:
    """Says what is wrong with two models of one run."""
    return (
        f"name the run {run}: it was continued more than once, and what all of them say together "
        "is not bounded by the guarantee. Release one of them, or train again"
    )


def save(reports: Sequence[Report], path: str | Path, policy: Limits = None) -> None:
    """Writes several reports into one file, in the form that its name asks for."""
    limits = Policy.unjudged() if policy is None else as_policy(policy)
    write(_document(reports, limits), Path(path))


def as_json_of(reports: Sequence[Report]) -> str:
    """Returns reports as the JSON that ``load_all`` reads, judged by no policy."""
    return as_json(_document(reports, Policy.unjudged()))


def summary(reports: Sequence[Report], policy: Policy) -> str:
    """Returns reports as Markdown, for the summary of a run."""
    return as_markdown(_document(reports, policy))


def _document(reports: Sequence[Report], policy: Policy) -> dict[str, Any]:
    return {"schema": SCHEMA, "reports": [report.document(policy) for report in reports]}
