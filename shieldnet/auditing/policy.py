"""Limits that a release must meet, and the verdict of a measurement against them."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from shieldnet.errors import ConfigError
from shieldnet.files.documents import read_toml
from shieldnet.finding import Finding, goes_by
from shieldnet.price import Price
from shieldnet.training.accountant import Guarantee

Outcome = Literal["pass", "fail", "inconclusive"]
VERSION = 1

FINDINGS = MappingProxyType(
    {
        "max_leakage": ("inversion", "averaging."),
        "max_white_box_leakage": ("white_box.inversion",),
        "max_reidentification": ("reidentification",),
        "max_membership_auc": ("membership.auc", "membership.averaged."),
        "max_membership_tpr_at_fpr_1e-2": ("membership.tpr_at_fpr_1e-2",),
        "max_membership_tpr_at_fpr_1e-3": ("membership.tpr_at_fpr_1e-3",),
        "max_worst_group_auc": ("membership.worst_group.auc",),
        "max_canary_auc": ("membership.canaries.auc",),
        "max_canary_tpr_at_fpr_1e-2": ("membership.canaries.tpr_at_fpr_1e-2",),
        "max_attribute_gain": ("attribute.*.gain",),
        "max_extraction_fidelity": ("extraction.fidelity",),
        "max_calibration_error": ("calibration.ece",),
        "min_accuracy": ("accuracy",),
        "min_agreement": ("agreement",),
    }
)
"""Which findings each limit judges: by name, by all names that begin so (ending in a dot), or by
what stands for the star."""

OF_GROUPS = MappingProxyType(
    {
        "max_membership_auc": "membership.group.{}.auc",
        "max_membership_tpr_at_fpr_1e-2": "membership.group.{}.tpr_at_fpr_1e-2",
        "max_membership_tpr_at_fpr_1e-3": "membership.group.{}.tpr_at_fpr_1e-3",
        "min_accuracy": "accuracy.group.{}",
    }
)
"""Which finding each limit judges of one subgroup."""

PROVEN = ("max_bits_per_answer", "max_mu_per_answer", "max_epsilon")
"""Limits on the certificate, and on the guarantee of the training."""

EVERY_GROUP = "*"
_OF_STEPS = (
    "the guarantee is of the training's steps alone: what the start already knew of the records is "
    "not stated. Train with start='public' (--start public) from a fresh or public model, or with "
    "start=Guarantee"
)


@dataclass(frozen=True)
class Judgment:
    """Holds what one limit says of one finding or price. finding: its name, or of the claim."""

    limit: str
    outcome: Outcome
    words: str
    finding: str = ""


@dataclass(frozen=True)
class Verdict:
    """Holds all judgments; its outcome is the worst of them. It is true only where all pass."""

    judgments: tuple[Judgment, ...]

    @property
    def broken(self) -> tuple[Judgment, ...]:
        """Returns what is broken, and then what cannot be told."""
        ranked = {"fail": 0, "inconclusive": 1}
        kept = (one for one in self.judgments if one.outcome in ranked)
        return tuple(sorted(kept, key=lambda one: ranked[one.outcome]))

    @property
    def outcome(self) -> Outcome:
        """Returns fail if anything fails, else inconclusive if anything is, else pass."""
        outcomes = {judgment.outcome for judgment in self.judgments}
        ranked: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")
        return next(outcome for outcome in ranked if outcome in outcomes or outcome == "pass")

    def __bool__(self) -> bool:
        return self.outcome == "pass"

    def __str__(self) -> str:
        return "\n".join(f"{one.outcome:>12}  {one.words}" for one in self.judgments)

    def __repr__(self) -> str:
        lines = [
            one.words if one.outcome == self.outcome else f"{one.words} ({one.outcome})"
            for one in self.broken
        ]
        return f"<{self.outcome}: {'; '.join(lines)}>" if lines else f"<{self.outcome}>"


@dataclass(frozen=True)
class Policy:
    """Limits by name. The interval's bound is judged, never the estimate alone.

    A limit passes where the whole interval keeps it, fails where the whole interval breaks it, and
    is inconclusive in between. What could not be measured fails. Beside the limits, a measured
    lower bound above its own proven upper bound fails everything.

    required: findings that must have been measured, whatever they say: names, or beginnings that
    end in a dot. groups: limits on subgroups by name, or ``"*"`` for every one of them. source: the
    file that it was read from.

    The default asks for inversion leakage of at most .10, at one query and averaged, and for a
    membership AUC of at most .60.
    """

    limits: Mapping[str, float] = field(
        default_factory=lambda: {"max_leakage": 0.10, "max_membership_auc": 0.60}
    )
    required: tuple[str, ...] = ()
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        _check_limits(_mapping("limits", self.limits), (*FINDINGS, *PROVEN), "A policy")
        required: object = self.required
        is_list = isinstance(required, tuple | list)
        if not (is_list and all(isinstance(one, str) and one for one in self.required)):
            raise ConfigError(f"Expected required as a list of findings' names, got {required!r}.")
        for name, limits in _mapping("groups", self.groups).items():
            _check_limits(_mapping(f"groups.{name}", limits), tuple(OF_GROUPS), "A subgroup")
        if not (self.limits or self.required or any(self.groups.values())):
            known = ", ".join((*FINDINGS, *PROVEN))
            raise ConfigError(f"A policy without a limit passes everything. Set: {known}.")

    @classmethod
    def load(cls, path: str | Path) -> "Policy":
        """Reads a TOML file: a line for each limit, ``required``, and ``[groups.NAME]`` tables."""
        found = read_toml(path)
        version = found.pop("version", VERSION)
        if version is True or version != VERSION:
            raise ConfigError(f"Expected version = {VERSION} in {path}, got {version!r}.")
        required = found.pop("required", [])
        if not isinstance(required, list):
            raise ConfigError(f'Expected required = ["name", ...] in {path}, got {required!r}.')
        groups = found.pop("groups", {})
        return cls(found, tuple(required), groups, source=Path(path).as_posix())

    def document(self) -> dict[str, Any]:
        """Returns the policy as JSON takes it."""
        return {
            "limits": dict(self.limits),
            "required": list(self.required),
            "groups": {name: dict(limits) for name, limits in self.groups.items()},
        }

    def hash(self) -> str:
        """Returns a hash that names what the policy asks, in whatever order it is written."""
        return sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()

    def judge(
        self,
        findings: Iterable[Finding],
        price: Price,
        guarantee: Guarantee | None = None,
        groups: Sequence[str] = (),
    ) -> Verdict:
        """Compares findings, the price and the guarantee of the training with every limit.

        groups: names of the subgroups that the audit was given.
        """
        measured = tuple(findings)
        judgments = [_crossed(one) for one in measured if one.crosses_proof]
        for name, limit in self.limits.items():
            if name in PROVEN:
                judgments.append(_proven(name, limit, price, guarantee))
            else:
                judgments += _measured(name, limit, measured, FINDINGS[name])
        judgments += [_required(name, measured) for name in self.required]
        judgments += self._of_groups(measured, groups)
        return Verdict(tuple(judgments))

    def _of_groups(self, measured: Sequence[Finding], groups: Sequence[str]) -> Iterator[Judgment]:
        for group, limits in self.groups.items():
            named = tuple(groups) if group == EVERY_GROUP else (group,)
            for limit, value in limits.items():
                if not named:
                    words = f"no subgroup was given; {limit} = {value:g} of every one asks for it"
                    yield Judgment(limit, "fail", words, OF_GROUPS[limit].format(group))
                for one in named:
                    yield from _measured(limit, value, measured, (OF_GROUPS[limit].format(one),))


def init_text() -> str:
    """Returns a commented policy in TOML, with every limit that there is."""
    return (Path(__file__).parent / "policy.init.toml").read_text(encoding="utf-8")


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"Expected {name} as a table of limits, got {value!r}.")
    return value


def _check_limits(limits: Mapping[str, float], known: Sequence[str], whose: str) -> None:
    for name, limit in limits.items():
        if name not in known:
            raise ConfigError(f"{whose} has no limit {name}. It has: {', '.join(known)}.")
        is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
        if not (is_number and 0 <= limit <= sys.float_info.max):
            raise ConfigError(f"Expected {name} to be a finite number >= 0, got {limit!r}.")


def concerns(name: str, pattern: str) -> bool:
    """Says whether a limit's pattern (see ``FINDINGS``) is about the finding of this name."""
    begins, star, ends = pattern.partition("*")
    if not star:
        return goes_by(name, pattern)
    return name.startswith(begins) and name.endswith(ends) and len(name) > len(begins) + len(ends)


def _measured(
    limit: str, value: float, findings: Sequence[Finding], patterns: Sequence[str]
) -> Iterator[Judgment]:
    concerned = [
        one for one in findings if any(concerns(one.name, pattern) for pattern in patterns)
    ]
    if not concerned:
        words = f"{patterns[0]} was not measured; {limit} = {value:g} asks for it"
        yield Judgment(limit, "fail", words, patterns[0].rstrip("."))
    for one in concerned:
        yield _judge(limit, value, one)


def _required(name: str, findings: Sequence[Finding]) -> Judgment:
    if any(goes_by(one.name, name) for one in findings):
        return Judgment("required", "pass", f"{name} was measured, as required", name)
    return Judgment("required", "fail", f"{name} was not measured; it is required", name)


def _judge(name: str, limit: float, finding: Finding) -> Judgment:
    least = name.startswith("min_")
    kept = finding.low >= limit if least else finding.high <= limit
    broken = finding.high < limit if least else finding.low > limit
    outcome: Outcome = "pass" if kept else "fail" if broken else "inconclusive"
    words = f"{finding.name} {finding}, {name} = {limit:g}"
    return Judgment(name, outcome, words, finding.name)


def _proven(name: str, limit: float, price: Price, guarantee: Guarantee | None) -> Judgment:
    if name == "max_epsilon":
        if guarantee is None:
            words = f"{name} = {limit:g}, but nothing is proven of training"
            return Judgment(name, "fail", words, "guarantee")
        if guarantee.scope == "steps":
            return Judgment(name, "fail", f"{name} = {limit:g}, but {_OF_STEPS}", "guarantee")
        value, claims = guarantee.epsilon, "guarantee"
    else:
        value = price.bits if name == "max_bits_per_answer" else price.mu
        claims = "certificate"
    outcome: Outcome = "pass" if value <= limit else "fail"
    words = f"{name} = {limit:g}, the {claims} says {value:.2f}"
    return Judgment(name, outcome, words, claims)


def _crossed(finding: Finding) -> Judgment:
    words = (
        f"{finding.name}: measured at least {finding.low:.3f}, proven at most "
        f"{finding.ceiling:.3f}: the defense, the accountant or the attack is wrong"
    )
    return Judgment("proof", "fail", words, finding.name)
