"""One measured line: what was found, how sure that is, and against whom."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from shieldnet.core.checks import flag, whole
from shieldnet.core.errors import ConfigError, ShieldnetError
from shieldnet.core.statistics import Curve, Interval

_MAX_EXPOSED = 10


class NotApplicable(ShieldnetError):
    """An attack or check that does not fit this shield or data; the report says why."""


@dataclass(frozen=True)
class Threat:
    """States what the adversary sees, knows, owns and may ask.

    queries: answers it gets about each example. auxiliary: rows of its own, of the same kind.
    white_box: whether it also holds the model. shadows: models of its own that it trained to learn
    what membership does to an answer. sees: what it sees; ``answers`` is what the shield releases
    and nothing else. knows_shield: whether it knows every defense and setting; ours always do.
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
    """Holds one measurement with its interval.

    name: what was measured; a stable name, used by policies. samples: rows it rests on.
    baseline: what an adversary without the answer, or with the label alone, reaches.
    ceiling: the proven upper bound for this measurement, None where nothing is proven.
    source: how it was measured; note: what it means, where the number alone misleads.
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
        """Says whether the measured lower bound lies above the proven upper bound."""
        return self.ceiling is not None and self.low > self.ceiling

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Finding":
        """Makes the finding of a document as ``dataclasses.asdict`` writes it."""
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
    """Says whether a finding's name is the pattern, or begins with one that ends in a dot."""
    return name == pattern or (pattern.endswith(".") and name.startswith(pattern))


def decimals(value: float) -> str:
    """Writes a number with three decimals, and never a minus before nothing."""
    return f"{round(value, 3) + 0.0:.3f}"


@dataclass(frozen=True)
class Exposed:
    """Names the records of a set that an attack reads best, worst first: places, never contents.

    name: of the finding that they stand out in. role: ``members``, ``nonmembers``. rows: places in
    the set as it was given. values: how far each is read; words: in which unit.
    NOT promised: that these are the worst for another attack, or that their order is not luck.
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
        """Keeps the ten records with the greatest scores; which of equals comes first is no news.

        Records that score no more than the eleventh are left out: they stand out from nobody.
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
        """Makes the list of a document as ``dataclasses.asdict`` writes it."""
        places, values = tuple(document["rows"]), tuple(document["values"])
        return cls(document["name"], document["role"], places, values, document["words"])


CLASS_IMAGE = "class image "
"""How an outcome's features are named that show what a class looks like, before the label."""


@dataclass(frozen=True)
class Outcome:
    """Holds what an attack or check returns: findings, and what a page can draw.

    features: a number per input feature, by name, each of the shape of one input.
    reconstructions: what the adversary expects for the targets, of the shape of the inputs.
    curves: ROC curves by the name of what they are about. exposed: the worst records.
    untested: what could not be measured, with the reason.
    """

    findings: tuple[Finding, ...] = ()
    features: dict[str, Tensor] = field(default_factory=dict)
    reconstructions: Tensor | None = None
    untested: tuple[str, ...] = ()
    curves: dict[str, Curve] = field(default_factory=dict)
    exposed: tuple[Exposed, ...] = ()

    def __add__(self, other: "Outcome") -> "Outcome":
        """Puts two outcomes together; of what both have, the later one's counts."""
        shown = self.reconstructions if other.reconstructions is None else other.reconstructions
        return Outcome(
            findings=(*self.findings, *other.findings),
            features={**self.features, **other.features},
            reconstructions=shown,
            untested=(*self.untested, *other.untested),
            curves={**self.curves, **other.curves},
            exposed=(*self.exposed, *other.exposed),
        )
