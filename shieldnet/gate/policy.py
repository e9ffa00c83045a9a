"""Policies: the limits that a release must meet, and the verdict on a report."""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from textwrap import wrap
from typing import Any

from shieldnet.core.errors import ConfigError
from shieldnet.files.documents import read_toml
from shieldnet.findings.finding import Finding
from shieldnet.findings.metrics import Limit
from shieldnet.gate.declared import PROVEN, PROVEN_NAMES, declared
from shieldnet.gate.judging import (
    Judgment,
    Verdict,
    crossed,
    each,
    measured_by,
    no_group,
    proven,
    required,
    strange,
)
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.privacy.guarantee import Guarantee

VERSION = 1
DEFAULT = "default"
"""The name of the default policy."""

_AT_POSITIONS = {
    "membership.sequences.": {"max_sequence_membership_auc": 0.60},
    "membership.maps.": {"max_leakage": 0.10, "max_map_membership_auc": 0.60},
}
"""The default limits of what answers at positions, by the findings that only it has."""
EVERY_GROUP = "*"
_UNJUDGED = "a guarantee of training is given, but the policy has no max_epsilon"
_KEY = re.compile(r"""\s*["']?([\w-]+)["']?\s*=""")
_GROUP = re.compile(r"""\s*\[\s*groups\s*\.\s*["']?(.*?)["']?\s*\]""")
_INIT = """\
# Requirements for a release. Written by: shieldnet policy init
# A limit passes if the whole 95% interval meets it, fails if the whole interval breaks it, and is
# inconclusive otherwise (exit codes 0, 1 and 3). A limit on something not measured fails.
# Without a file, --policy default sets only {defaults}.
# A measured lower bound above its own proven upper bound always fails the release.
version = {version}
{limits}

# Findings that must have been measured, whatever their value: names, or prefixes ending in a dot.
# required = ["membership.canaries.auc", "attribute."]

# Limits for subgroups by name, as in --group or groups=; "*" stands for every subgroup.
# [groups."*"]
{of_groups}
"""


@dataclass(frozen=True)
class Policy:
    """Holds the limits that a release must meet and judges findings by their intervals.

    A limit passes if the whole interval meets it, fails if the whole interval breaks it, and is
    inconclusive otherwise. A limit on something that was not measured fails. A measured lower bound
    above its own proven upper bound always fails, whatever the limits.

    limits: values by name; by default an inversion leakage of at most 0.10, at one query and
    averaged, and a membership AUC of at most 0.60. required: findings that must have been measured,
    whatever their value: names, or prefixes that end in a dot. groups: limits by subgroup name, or
    ``"*"`` for every subgroup. source: the file that it was read from. lines: the line of each
    limit in that file, from 1; of a subgroup's limit by ``groups.NAME.LIMIT``.
    """

    limits: Mapping[str, float] = field(
        default_factory=lambda: {"max_leakage": 0.10, "max_membership_auc": 0.60}
    )
    required: tuple[str, ...] = ()
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    source: str = field(default="", compare=False)
    lines: Mapping[str, int] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        proven = {limit.name: limit for limit in PROVEN}
        known = {**declared().limits(), **proven}
        _check_limits(_mapping("limits", self.limits), known, "A policy")
        required: object = self.required
        is_list = isinstance(required, tuple | list)
        if not (is_list and all(isinstance(name, str) and name for name in self.required)):
            raise ConfigError(f"Expected required to be a list of finding names, got {required!r}.")
        of_groups = declared().limits(of_groups=True)
        for name, limits in _mapping("groups", self.groups).items():
            _check_limits(_mapping(f"groups.{name}", limits), of_groups, "A subgroup")
        if not self.asks:
            raise ConfigError(
                f"A policy without a limit passes everything. Set: {', '.join(known)}."
            )

    @property
    def asks(self) -> bool:
        """Returns whether the policy has any limit; only ``unjudged()`` has none."""
        return bool(self.limits or self.required or any(self.groups.values()))

    @classmethod
    def unjudged(cls) -> "Policy":
        """Returns a policy without limits, used if none was given.

        A measured lower bound above its own proven upper bound still fails.
        """
        policy = object.__new__(cls)
        nothing = {"limits": {}, "required": (), "groups": {}, "source": "", "lines": {}}
        for name, value in nothing.items():
            object.__setattr__(policy, name, value)
        return policy

    @classmethod
    def load(cls, path: str | Path) -> "Policy":
        """Reads a policy from a TOML file with limits, ``required`` and ``[groups.NAME]`` tables.

        path: the file, or ``"default"`` for the default policy.
        """
        if path == DEFAULT:
            return cls(source=DEFAULT)
        document = read_toml(path)
        version = document.pop("version", VERSION)
        if version is True or version != VERSION:
            raise ConfigError(f"Expected version = {VERSION} in {path}, got {version!r}.")
        required = document.pop("required", [])
        if not isinstance(required, list):
            raise ConfigError(f'Expected required = ["name", ...] in {path}, got {required!r}.')
        groups = document.pop("groups", {})
        source = Path(path).as_posix()
        return cls(document, tuple(required), groups, source=source, lines=_lines_of(path))

    def fitting(self, measured: Iterable[str]) -> "Policy":
        """Returns the default policy as the kind of answer needs it; any other as it is.

        The records of a language model are texts, and those of a segmentation maps: membership is
        judged by what is measured of these. measured: names of findings.
        """
        if self.source != DEFAULT:
            return self
        names = tuple(measured)
        for prefix, limits in _AT_POSITIONS.items():
            if any(name.startswith(prefix) for name in names):
                return replace(self, limits=limits)
        return self

    def __str__(self) -> str:
        limits = [f"{name} = {limit:g}" for name, limit in self.limits.items()]
        limits += [f"required {name}" for name in self.required]
        for group, of_group in self.groups.items():
            whose = "every subgroup" if group == EVERY_GROUP else group
            limits += [f"{name} = {limit:g} for {whose}" for name, limit in of_group.items()]
        name = {"": "policy", DEFAULT: "default policy"}.get(self.source, f"policy {self.source}")
        return f"{name}: {', '.join(limits)}" if limits else "no policy: nothing is judged"

    def document(self) -> dict[str, Any]:
        """Returns the policy as a JSON-serializable dict."""
        return {
            "limits": dict(self.limits),
            "required": list(self.required),
            "groups": {name: dict(limits) for name, limits in self.groups.items()},
        }

    def hash(self) -> str:
        """Returns a hash of the requirements that does not depend on their order."""
        return sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()

    def judge(
        self,
        findings: Iterable[Finding],
        cost: PrivacyCost,
        guarantee: Guarantee | None = None,
        groups: Sequence[str] = (),
    ) -> Verdict:
        """Judges findings, the privacy cost and the training guarantee by every limit.

        cost: of one answer. guarantee: of the training, or None. groups: names of the audit's
        subgroups.
        """
        measured = tuple(findings)
        judgments = [crossed(finding) for finding in measured if finding.crosses_proof]
        for name, limit in self.limits.items():
            if name in PROVEN_NAMES:
                judgments.append(proven(name, limit, cost, guarantee))
            else:
                judgments += measured_by(name, limit, measured)
        if not self.asks:
            return Verdict(tuple(judgments))
        known = declared()
        judgments += [strange(finding) for finding in measured if known.find(finding.name) is None]
        judgments += [required(name, measured) for name in self.required]
        judgments += self._of_groups(measured, groups)
        is_unjudged = guarantee is not None and "max_epsilon" not in self.limits
        return Verdict(tuple(judgments), (_UNJUDGED,) if is_unjudged else ())

    def _of_groups(self, measured: Sequence[Finding], groups: Sequence[str]) -> Iterator[Judgment]:
        # A fixed order, so that JUnit test names do not depend on the order of the file.
        for group, limits in sorted(
            self.groups.items(), key=lambda item: (item[0] != EVERY_GROUP, item[0])
        ):
            named = tuple(groups) if group == EVERY_GROUP else (_known(group, groups),)
            for limit, value in limits.items():
                for metric in declared().judged_by(limit, of_groups=True):
                    if not named:
                        message = (
                            f"no subgroup was given; {limit} = {value:g} applies to every subgroup"
                        )
                        yield Judgment(limit, "fail", message, metric.name)
                    for of_group in named:
                        name = metric.of(of_group)
                        concerned = [finding for finding in measured if finding.name == name]
                        if not concerned and of_group not in groups:
                            yield no_group(limit, value, of_group, groups, name)
                        else:
                            yield from each(limit, value, concerned, name)


def _known(group: str, groups: Sequence[str]) -> str:
    """Returns a subgroup as the report writes it, whatever the spaces around =."""
    return next((name for name in groups if _dense(name) == _dense(group)), group)


def _dense(name: str) -> str:
    return re.sub(r"\s*=\s*", "=", name.strip())


def _lines_of(path: str | Path) -> dict[str, int]:
    """Returns the line of every key of a policy file, from 1, for those who point at it."""
    lines: dict[str, int] = {}
    group = ""
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if head := _GROUP.match(line):
            group = f"groups.{head[1]}."
        elif key := _KEY.match(line):
            lines.setdefault(f"{group}{key[1]}", number)
    return lines


def init_text() -> str:
    """Returns a commented policy in TOML that lists every available limit."""
    limits = declared().limits().values()
    of_groups = declared().limits(of_groups=True).values()
    return _INIT.format(
        version=VERSION,
        defaults=" and ".join(f"{name} = {value:.2f}" for name, value in Policy().limits.items()),
        limits="\n".join(line for limit in (*limits, *PROVEN) for line in _init_lines(limit)),
        of_groups="\n".join(f"# {_line(limit)}" for limit in of_groups),
    )


def _init_lines(limit: Limit) -> Iterator[str]:
    """Writes an active limit below its comment, or an inactive one with the comment beside it."""
    line = _line(limit)
    about = f"{limit.about} (--tier standard)" if "--tier" in limit.needs else limit.about
    if limit.is_set:
        yield ""
        yield from wrap(about, 100, initial_indent="# ", subsequent_indent="# ")
        yield line
    else:
        yield f"# {line:<36} # {about}" if about else f"# {line}"


def _line(limit: Limit) -> str:
    value = limit.suggested
    return f"{limit.name} = {value if isinstance(value, int) else format(value, '.2f')}"


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"Expected {name} to be a table of limits, got {value!r}.")
    return value


def _check_limits(limits: Mapping[str, float], known: Mapping[str, Limit], whose: str) -> None:
    for name, limit in limits.items():
        if name not in known:
            tables = ("groups", "required") if whose == "A policy" else ()
            close = get_close_matches(name, (*known, *tables), n=1)
            meant = f"Do you mean {close[0]}?" if close else f"It has: {', '.join(known)}."
            raise ConfigError(
                f"{whose} has no limit {name}. {meant} shieldnet policy init writes all of them."
            )
        is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
        if not (is_number and 0 <= limit <= sys.float_info.max):
            raise ConfigError(f"Expected {name} to be a finite number >= 0, got {limit!r}.")
        if limit > known[name].most:
            raise ConfigError(
                f"Expected {name} from 0 to {known[name].most:g}, the range of the measurement, "
                f"got {limit!r}."
            )
