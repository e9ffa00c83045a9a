"""Metrics: what the name of a finding means, declared once beside the code that measures it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from shieldnet.core.errors import ConfigError

Worse = Literal["more", "less", "neither"]
Bound = Literal["", "auc", "tpr"]
RELEASE_LESS = (
    "Release less per answer: a stricter preset (--preset strict), fewer classes, digits or bins."
)
"""What lowers the findings of attacks that read inputs from answers."""
OR_LABELS = ", or release labels alone (--preset strict)"
"""What else lowers the findings of membership."""
MORE_ATTACKS = "run it with --tier standard or full (tier=), and give auxiliary records"
"""What the limits on attacks need that the quick tier leaves out."""


@dataclass(frozen=True)
class Limit:
    """Describes a limit that a policy can set on a finding.

    name: ``max_...`` or ``min_...``. suggested: a value to start with. about: a description, the
    comment in ``shieldnet policy init``. is_set: whether ``policy init`` sets the limit or writes
    it as a comment. most: the largest value that the judged quantity can have; inf if unbounded.
    helps: what can be done if the limit is not met, a sentence. helps_model, helps_shield: what can
    be done where the bare model reaches no more, and where it does. needs: what the audit must be
    given, or how it must run, for the limit to be measured.
    """

    name: str
    suggested: float
    about: str
    is_set: bool = False
    most: float = 1.0
    helps: str = ""
    helps_model: str = ""
    helps_shield: str = ""
    needs: str = ""

    def __post_init__(self) -> None:
        if not self.name.startswith(("max_", "min_")):
            raise ConfigError(f"Expected a limit named max_... or min_..., got {self.name}.")


@dataclass(frozen=True)
class Metric:
    """Describes one kind of finding, for policies, comparisons, charts, tables and evidence.

    name: the finding's name; ``*`` stands for a variable part (a column, a group, a number).
    title: its heading in tables. worse: which direction is worse. limit: the limit that judges it.
    ungated: why no limit judges it. of_groups: whether the limit is set per subgroup, in a policy's
    ``[groups]``. standards: items of standards that it is evidence for, numbered as in
    ``reports.evidence``. headline: whether it appears in the first tables; stands_in:
    only where no other measure of use does. training_bound: which
    bound a training guarantee gives: ``auc``, or ``tpr`` at the false-positive rate in the name.
    rows: what its sample size counts. needs_confidence: whether labels alone do not have it.
    Errors: ConfigError unless a metric that can be worse has either a limit or a reason for none.
    """

    name: str
    title: str
    worse: Worse
    limit: Limit | None = None
    ungated: str = ""
    of_groups: bool = False
    standards: tuple[str, ...] = ()
    headline: bool = False
    stands_in: bool = False
    training_bound: Bound = ""
    rows: str = "nonmembers"
    needs_confidence: bool = False

    def __post_init__(self) -> None:
        if self.worse != "neither" and (self.limit is None) == (not self.ungated):
            raise ConfigError(
                f"Expected limit=, or ungated= with the reason why there is none, for {self.name}."
            )
        begins = {"more": "max_", "less": "min_"}.get(self.worse, "none")
        if self.limit is not None and not self.limit.name.startswith(begins):
            raise ConfigError(
                f"Expected a limit named {begins}... for {self.name} ({self.worse} is worse), "
                f"got {self.limit.name}."
            )

    def matches(self, name: str) -> bool:
        """Returns whether a finding with this name can be of this kind."""
        begins, star, ends = self.name.partition("*")
        if not star:
            return name == self.name
        return name.startswith(begins) and name.endswith(ends) and len(name) >= len(self.name)

    def of(self, part: str) -> str:
        """Returns the name of the finding for one part, such as a column or a group."""
        return self.name.replace("*", part)

    def titled(self, name: str) -> str:
        """Returns the title of one finding with its column or group, in the place of ``{}``."""
        if "*" not in self.name:
            return self.title
        part = self.part(name)
        return self.title.format(part) if "{}" in self.title else f"{self.title}: {part}"

    def part(self, name: str) -> str:
        """Returns the variable part of a finding's name, such as its column or group."""
        begins, _, ends = self.name.partition("*")
        return name.removeprefix(begins).removesuffix(ends)

    @property
    def arrow(self) -> str:
        """Returns the direction that is better: an arrow up, down, or nothing."""
        return {"more": "↓", "less": "↑", "neither": ""}[self.worse]

    @property
    def better(self) -> str:
        """Says which direction is better."""
        words = {"more": "lower is better", "less": "higher is better", "neither": ""}
        return words[self.worse]


@dataclass(frozen=True)
class Metrics:
    """Holds metrics with unique names."""

    every: tuple[Metric, ...]

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.every]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"Expected unique metrics, got {', '.join(twice)} more than once.")

    def find(self, name: str) -> Metric | None:
        """Returns the metric of a finding, or None; the longest matching pattern wins."""
        fitting = [metric for metric in self.every if metric.matches(name)]
        exact = [metric for metric in fitting if metric.name == name]
        return max(exact or fitting, key=lambda metric: len(metric.name), default=None)

    def require(self, names: Iterable[str], whose: str) -> None:
        """Raises ConfigError for an undeclared finding, which no policy could judge."""
        for name in names:
            if self.find(name) is None:
                raise ConfigError(
                    f"Expected {whose} to declare a metric for the finding {name}, got: "
                    f"{', '.join(metric.name for metric in self.every) or 'none'}. "
                    "Add a Metric to its metrics."
                )

    def limits(self, *, of_groups: bool = False) -> dict[str, Limit]:
        """Returns the limits by name, ``max_...`` first: for all records, or for subgroups."""
        limits = [
            metric.limit for metric in self.every if metric.limit and metric.of_groups == of_groups
        ]
        limits.sort(key=lambda limit: limit.name.startswith("min_"))
        return {limit.name: limit for limit in limits}

    def headlines(self, measured: Iterable[str]) -> tuple[Metric, ...]:
        """Returns the metrics in the first tables, of the findings that were measured.

        A metric of use that only replaces others is left out beside them.
        """
        found = {metric for name in measured if (metric := self.find(name)) is not None}
        shown = [metric for metric in self.every if metric.headline and metric in found]
        useful = [metric for metric in shown if metric.worse == "less"]
        is_used = any(not metric.stands_in for metric in useful)
        return tuple(metric for metric in shown if not (metric.stands_in and is_used))

    def substitutes(self, measured: Iterable[str]) -> tuple[Metric, ...]:
        """Returns what appears in the first tables in place of what was not measured.

        The first metric of each limit that judges a headline of which there is no finding.
        """
        found = {metric for name in measured if (metric := self.find(name)) is not None}
        heads = [
            (metric, metric.limit.name) for metric in self.every if metric.headline and metric.limit
        ]
        missing = {name for _, name in heads} - {name for metric, name in heads if metric in found}
        first: dict[str, Metric] = {}
        for metric in self.every:
            if metric in found and metric.limit and not metric.of_groups:
                first.setdefault(metric.limit.name, metric)
        return tuple(metric for name, metric in first.items() if name in missing)

    def limit_named(self, name: str) -> Limit | None:
        """Returns a limit on all records, else one on subgroups, by its name; None if unknown."""
        limits = {**self.limits(of_groups=True), **self.limits()}
        return limits.get(name)

    def judged_by(self, limit: str, *, of_groups: bool = False) -> tuple[Metric, ...]:
        """Returns the metrics that a limit judges: for all records, or for subgroups."""
        return tuple(
            metric
            for metric in self.every
            if metric.limit and metric.limit.name == limit and metric.of_groups == of_groups
        )
