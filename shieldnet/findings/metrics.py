"""What the name of a finding means: declared once, beside what measures it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from shieldnet.core.errors import ConfigError

Worse = Literal["more", "less", "neither"]
Bound = Literal["", "auc", "tpr"]


@dataclass(frozen=True)
class Limit:
    """What a policy may ask of a finding.

    name: ``max_...`` or ``min_...``. suggested: a value to begin with. about: what it is about, the
    comment in ``shieldnet policy init``. is_set: whether that sets it or only shows it. most: the
    greatest value that what it judges can have; inf where there is none.
    """

    name: str
    suggested: float
    about: str
    is_set: bool = False
    most: float = 1.0

    def __post_init__(self) -> None:
        if not self.name.startswith(("max_", "min_")):
            raise ConfigError(f"Expected a limit called max_... or min_..., got {self.name}.")


@dataclass(frozen=True)
class Metric:
    """Describes one kind of finding: gate, comparison, charts, tables and evidence read it here.

    name: of the finding; a ``*`` stands for a part that differs (a column, a group, a number).
    title: for a table's head. worse: which way is worse. limit: that judges it. ungated: why no
    limit does. of_groups: whether the limit is set for subgroups, in a policy's ``[groups]``.
    standards: items that it speaks to, as ``reports.evidence`` numbers them. headline: whether it
    stands in the first tables. training_bound: what a guarantee of the training bounds it by, its
    area under the curve or the rate at the false-positive rate that the name ends in.
    Errors: ConfigError for a leak that has neither a limit nor a reason why none judges it.
    """

    name: str
    title: str
    worse: Worse
    limit: Limit | None = None
    ungated: str = ""
    of_groups: bool = False
    standards: tuple[str, ...] = ()
    headline: bool = False
    training_bound: Bound = ""

    def __post_init__(self) -> None:
        if self.worse != "neither" and (self.limit is None) == (not self.ungated):
            raise ConfigError(f"Expected a limit for {self.name}, or a reason why none judges it.")
        begins = {"more": "max_", "less": "min_"}.get(self.worse, "none")
        if self.limit is not None and not self.limit.name.startswith(begins):
            raise ConfigError(
                f"Expected a limit {begins}... for {self.name}, of which {self.worse} is worse; "
                f"got {self.limit.name}."
            )

    def matches(self, name: str) -> bool:
        """Says whether a finding of this name may be of this kind."""
        begins, star, ends = self.name.partition("*")
        if not star:
            return name == self.name
        return name.startswith(begins) and name.endswith(ends) and len(name) >= len(self.name)

    def of(self, part: str) -> str:
        """Returns the name of the finding about one part: a column, a group."""
        return self.name.replace("*", part)

    def titled(self, name: str) -> str:
        """Returns the title of one finding: a column, a group stands behind it."""
        begins, star, ends = self.name.partition("*")
        subject = name.removeprefix(begins).removesuffix(ends)
        return f"{self.title}: {subject}" if star else self.title


@dataclass(frozen=True)
class Metrics:
    """Holds kinds of findings, each name once."""

    every: tuple[Metric, ...]

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.every]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"Expected every metric declared once, got {', '.join(twice)} twice.")

    def find(self, name: str) -> Metric | None:
        """Returns the kind of a finding: of several patterns the longest; None for no kind."""
        fitting = [metric for metric in self.every if metric.matches(name)]
        exact = [metric for metric in fitting if metric.name == name]
        return max(exact or fitting, key=lambda metric: len(metric.name), default=None)

    def require(self, names: Iterable[str], whose: str) -> None:
        """Raises ConfigError for a finding that nobody declared: nothing would ever judge it."""
        for name in names:
            if self.find(name) is None:
                raise ConfigError(
                    f"Expected a metric for the finding {name} among those that {whose} declares: "
                    f"{', '.join(metric.name for metric in self.every) or 'none'}. "
                    "Add a Metric to its metrics."
                )

    def limits(self, *, of_groups: bool = False) -> dict[str, Limit]:
        """Returns the limits by name, leaks first: of the whole, or of subgroups."""
        limits = [
            metric.limit for metric in self.every if metric.limit and metric.of_groups == of_groups
        ]
        limits.sort(key=lambda limit: limit.name.startswith("min_"))
        return {limit.name: limit for limit in limits}

    def headlines(self, measured: Iterable[str]) -> tuple[Metric, ...]:
        """Lists what stands in the first tables, of findings that were measured.

        Of those that say what answers are still good for, the first alone: the accuracy, or what
        there is in its place.
        """
        found = {metric for name in measured if (metric := self.find(name)) is not None}
        shown = [metric for metric in self.every if metric.headline and metric in found]
        useful = [metric for metric in shown if metric.worse == "less"]
        return tuple(metric for metric in shown if metric not in useful[1:])

    def judged_by(self, limit: str, *, of_groups: bool = False) -> tuple[Metric, ...]:
        """Lists what a limit judges: of the whole, or of subgroups."""
        return tuple(
            metric
            for metric in self.every
            if metric.limit and metric.limit.name == limit and metric.of_groups == of_groups
        )
