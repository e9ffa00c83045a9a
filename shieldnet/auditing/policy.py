"""Limits that a release must meet, and the verdict of a measurement against them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from shieldnet._validate import read_toml
from shieldnet.errors import ConfigError
from shieldnet.finding import Finding, goes_by
from shieldnet.price import Price
from shieldnet.training.accountant import Guarantee

Outcome = Literal["pass", "fail", "inconclusive"]

FINDINGS = MappingProxyType(
    {
        "max_leakage": ("inversion", "averaging."),
        "max_reidentification": ("reidentification",),
        "max_membership_auc": ("membership.auc", "membership.averaged."),
        "max_membership_tpr_at_fpr_1e-2": ("membership.tpr_at_fpr_1e-2",),
        "max_membership_tpr_at_fpr_1e-3": ("membership.tpr_at_fpr_1e-3",),
        "min_accuracy": ("accuracy",),
    }
)
"""Which findings each limit judges: by name, or by all names that begin so (ending in a dot)."""

PROVEN = ("max_bits_per_answer", "max_mu_per_answer", "max_epsilon")
"""Limits on the certificate, and on the guarantee of the training."""


@dataclass(frozen=True)
class Judgment:
    """Holds what one limit says of one finding or price."""

    limit: str
    outcome: Outcome
    words: str


@dataclass(frozen=True)
class Verdict:
    """Holds all judgments about one shield; its outcome is the worst of them."""

    judgments: tuple[Judgment, ...]

    @property
    def outcome(self) -> Outcome:
        """Returns fail if anything fails, else inconclusive if anything is, else pass."""
        outcomes = {judgment.outcome for judgment in self.judgments}
        ranked: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")
        return next(outcome for outcome in ranked if outcome in outcomes or outcome == "pass")

    def __str__(self) -> str:
        return "\n".join(f"{one.outcome:>12}  {one.words}" for one in self.judgments)


@dataclass(frozen=True)
class Policy:
    """Limits by name. The interval's bound is judged, never the estimate alone.

    A limit passes where the whole interval keeps it, fails where the whole interval breaks it, and
    is inconclusive in between. What could not be measured fails. Beside the limits, a measured
    lower bound above its own proven upper bound fails everything.

    The default asks for inversion leakage of at most .10, at one query and averaged, and for a
    membership AUC of at most .60.
    """

    limits: Mapping[str, float] = field(
        default_factory=lambda: {"max_leakage": 0.10, "max_membership_auc": 0.60}
    )

    def __post_init__(self) -> None:
        known = (*FINDINGS, *PROVEN)
        if not self.limits:
            raise ConfigError(
                f"A policy without a limit passes everything. Set: {', '.join(known)}."
            )
        for name, limit in self.limits.items():
            if name not in known:
                raise ConfigError(f"A policy has no limit {name}. It has: {', '.join(known)}.")
            is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
            if not (is_number and 0 <= limit < math.inf):
                raise ConfigError(f"Expected {name} to be a finite number >= 0, got {limit!r}.")

    @classmethod
    def load(cls, path: str | Path) -> "Policy":
        """Reads a TOML file with one line for each limit."""
        return cls(read_toml(path))

    def judge(
        self, findings: Iterable[Finding], price: Price, guarantee: Guarantee | None = None
    ) -> Verdict:
        """Compares findings, the price and the guarantee of the training with every limit."""
        measured = tuple(findings)
        judgments = [_crossed(one) for one in measured if one.crosses_proof]
        for name, limit in self.limits.items():
            if name in PROVEN:
                judgments.append(_proven(name, limit, price, guarantee))
                continue
            prefixes = FINDINGS[name]
            concerned = [
                one for one in measured if any(goes_by(one.name, prefix) for prefix in prefixes)
            ]
            judgments += [_judge(name, limit, one) for one in concerned]
            if not concerned:
                words = f"{prefixes[0]} was not measured; {name} = {limit:g} asks for it"
                judgments.append(Judgment(name, "fail", words))
        return Verdict(tuple(judgments))


def _judge(name: str, limit: float, finding: Finding) -> Judgment:
    least = name.startswith("min_")
    kept = finding.low >= limit if least else finding.high <= limit
    broken = finding.high < limit if least else finding.low > limit
    outcome: Outcome = "pass" if kept else "fail" if broken else "inconclusive"
    return Judgment(name, outcome, f"{finding.name} {finding}, {name} = {limit:g}")


def _proven(name: str, limit: float, price: Price, guarantee: Guarantee | None) -> Judgment:
    if name == "max_epsilon":
        if guarantee is None:
            return Judgment(name, "fail", f"{name} = {limit:g}, but nothing is proven of training")
        value, claims = guarantee.epsilon, "the guarantee"
    else:
        value = price.bits if name == "max_bits_per_answer" else price.mu
        claims = "the certificate"
    outcome: Outcome = "pass" if value <= limit else "fail"
    return Judgment(name, outcome, f"{name} = {limit:g}, {claims} says {value:.2f}")


def _crossed(finding: Finding) -> Judgment:
    words = (
        f"{finding.name}: measured at least {finding.low:.3f}, proven at most "
        f"{finding.ceiling:.3f}: the defense, the accountant or the attack is wrong"
    )
    return Judgment("proof", "fail", words)
