"""Findings: one measured value with its interval, sample size and threat model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from shieldnet.core.checks import flag, whole
from shieldnet.core.errors import ConfigError, ShieldnetError
from shieldnet.core.statistics import Curve, Interval

_MAX_EXPOSED = 10
NO_USE = "the adversary found no use for the answers"
"""Ends the note of a finding whose adversary guesses as it would without an answer."""
UNREAD = "the model does not read this column, so its answers add nothing"
"""Ends the note of a finding about a column that the model does not read."""


class NotApplicable(ShieldnetError):
    """Raised if an attack or check does not apply to this shield or data; the report says why."""


@dataclass(frozen=True)
class Threat:
    """Describes what the adversary sees, knows, owns and may ask.

    queries: number of answers that it gets for each example. auxiliary: number of rows of similar
    data that it owns. white_box: whether it also has the model. shadows: number of shadow models
    that it trained to learn how membership changes an answer. sees: what it sees; ``answers`` means
    only what the shield releases. knows_shield: whether it knows every defense and its settings, as
    all built-in attacks do.
    """

    queries: int = 1
    auxiliary: int = 0
    white_box: bool = False
    shadows: int = 0
    sees: str = "answers"
    knows_shield: bool = True

    def __post_init__(self) -> None:
        for name in ("queries", "auxiliary", "shadows"):
            whole(name, getattr(self, name), low=0)
        for name in ("white_box", "knows_shield"):
            flag(name, getattr(self, name))

    def __str__(self) -> str:
        asks = "1 answer" if self.queries == 1 else f"{self.queries} answers"
        sees = f"sees {asks} per example" if self.sees == "answers" else f"sees {self.sees}"
        owns = f", owns {self.auxiliary} rows" if self.auxiliary else ""
        trains = f", trains {self.shadows} shadows" if self.shadows else ""
        holds = ", holds the model" if self.white_box else ""
        return sees + owns + trains + holds + ("" if self.knows_shield else ", knows no defense")


@dataclass(frozen=True)
class Finding:
    """Holds one measured value with its confidence interval.

    name: what was measured; a stable name that policies refer to. value, low, high: the estimate
    and the ends of its interval. samples: number of rows that it is based on. baseline: the value
    that an adversary reaches without the answer, or with the label alone. threat: the adversary.
    source: how it was measured. ceiling: the proven upper bound, or None if nothing is proven.
    note: an explanation where the number alone would mislead.
    """

    name: str
    value: float
    low: float
    high: float
    samples: int
    baseline: float
    threat: Threat
    source: str
    ceiling: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not all(math.isfinite(number) for number in (self.value, self.low, self.high)):
            raise ConfigError(f"Expected a finite {self.name}, got {self.value}.")
        if self.low > self.high:
            raise ConfigError(
                f"Expected {self.name} between its bounds, got {self.low} above {self.high}."
            )

    def __str__(self) -> str:
        return f"{decimals(self.value)} [{decimals(self.low)}, {decimals(self.high)}]"

    @property
    def crosses_proof(self) -> bool:
        """Returns whether the measured lower bound exceeds the proven upper bound."""
        return self.ceiling is not None and self.low > self.ceiling

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Finding":
        """Restores a finding from a document written by ``dataclasses.asdict``."""
        return cls(**{**document, "threat": Threat(**document["threat"])})

    @classmethod
    def of(
        cls,
        name: str,
        interval: Interval,
        *,
        samples: int,
        baseline: float,
        threat: Threat,
        source: str,
        ceiling: float | None = None,
        note: str = "",
    ) -> "Finding":
        """Makes a finding from an interval."""
        return cls(
            name,
            interval.value,
            interval.low,
            interval.high,
            samples,
            baseline,
            threat,
            source,
            ceiling,
            note,
        )


def goes_by(name: str, pattern: str) -> bool:
    """Returns whether a name equals the pattern, or starts with it if it ends in a dot."""
    return name == pattern or (pattern.endswith(".") and name.startswith(pattern))


def decimals(value: float) -> str:
    """Formats a number with three decimals; a rounded zero has no minus sign."""
    return f"{round(value, 3) + 0.0:.3f}"


@dataclass(frozen=True)
class Exposed:
    """Lists the most exposed records of a set, worst first: row indices, never contents.

    name: the finding in which they stand out. role: ``members`` or ``nonmembers``. rows: row
    indices in the set as it was passed. values: how exposed each record is; words: their unit.
    NOT promised: that another attack exposes the same records, or that their order is significant.
    """

    name: str
    role: str
    rows: tuple[int, ...]
    values: tuple[float, ...]
    words: str

    @classmethod
    def of(
        cls, name: str, role: str, rows: Tensor, scores: Tensor, values: Tensor, words: str
    ) -> "Exposed":
        """Keeps the ten records with the highest scores; the order of equal scores is arbitrary.

        Records that score no higher than the eleventh are dropped: they do not stand out.
        Shapes: rows, scores, values (n,).
        """
        ranked = scores.argsort(descending=True, stable=True)
        order = ranked[:_MAX_EXPOSED]
        if len(ranked) > _MAX_EXPOSED:
            order = order[scores[order] > scores[ranked[_MAX_EXPOSED]]]
        kept = (round(value, 6) for value in values[order].tolist())
        return cls(name, role, tuple(rows[order].tolist()), tuple(kept), words)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Exposed":
        """Restores a list from a document written by ``dataclasses.asdict``."""
        rows, values = tuple(document["rows"]), tuple(document["values"])
        return cls(document["name"], document["role"], rows, values, document["words"])


CLASS_IMAGE = "class image "
"""Prefix, before the label, of the names of features that show what a class looks like."""


@dataclass(frozen=True)
class Outcome:
    """Holds what an attack or check returns: findings, and data for the report's charts.

    features: a value per input feature, by name, each in the shape of one input.
    reconstructions: the adversary's estimates of the targets, in the shape of the inputs.
    curves: ROC curves by subject. exposed: the most exposed records.
    untested: what could not be measured, each with the reason.
    """

    findings: tuple[Finding, ...] = ()
    features: dict[str, Tensor] = field(default_factory=dict)
    reconstructions: Tensor | None = None
    untested: tuple[str, ...] = ()
    curves: dict[str, Curve] = field(default_factory=dict)
    exposed: tuple[Exposed, ...] = ()

    def __add__(self, other: "Outcome") -> "Outcome":
        """Combines two outcomes; where both have a value, the later one wins."""
        shown = self.reconstructions if other.reconstructions is None else other.reconstructions
        return Outcome(
            findings=(*self.findings, *other.findings),
            features={**self.features, **other.features},
            reconstructions=shown,
            untested=(*self.untested, *other.untested),
            curves={**self.curves, **other.curves},
            exposed=(*self.exposed, *other.exposed),
        )
