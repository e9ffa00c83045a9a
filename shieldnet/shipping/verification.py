"""What was found of a hardened folder, check by check, and what follows from all of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from shieldnet.core.checks import choice
from shieldnet.core.errors import (
    MissingDependency,
    PolicyFailed,
    PolicyInconclusive,
    ShieldnetError,
    VerificationFailed,
)
from shieldnet.core.printable import printable

Result = Literal["pass", "fail", "inconclusive", "not checked"]
CheckName = Literal["files", "signature", "model", "graphs", "certificate", "report", "policy"]
CHECKS: tuple[CheckName, ...] = get_args(CheckName)
"""The checks of a folder, in the order in which they are done."""


@dataclass(frozen=True)
class Checked:
    """Holds what was found of one thing that a hardened folder claims.

    words: printable ones; a folder's files may hold anything.
    """

    name: CheckName
    result: Result
    words: str
    judged: bool = False  # by the policy, of a report that is intact

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", printable(self.words))

    def required(self) -> "Checked":
        """Returns the check as one that has to pass: what was not checked fails."""
        if self.result != "not checked":
            return self
        return replace(self, result="fail", words=f"required, and not checked: {self.words}")


@dataclass(frozen=True)
class Verification:
    """Holds all that was checked of a folder. It is true where nothing that was checked is broken.

    What was not checked says why; it is no failure unless it is required.
    """

    folder: str
    checks: tuple[Checked, ...]

    def __getitem__(self, name: str) -> Checked:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"There is no check {name}. There are: {', '.join(CHECKS)}.")

    def __bool__(self) -> bool:
        return self.outcome == "pass"

    @property
    def outcome(self) -> Literal["pass", "fail", "inconclusive"]:
        """Returns fail if anything fails, else inconclusive if the policy is, else pass."""
        results = {check.result for check in self.checks}
        if "fail" in results:
            return "fail"
        return "inconclusive" if "inconclusive" in results else "pass"

    @property
    def unchecked(self) -> tuple[CheckName, ...]:
        """Names what was not checked."""
        return tuple(check.name for check in self.checks if check.result == "not checked")

    @property
    def conclusion(self) -> str:
        """Returns one sentence that also names what was not checked."""
        if not self:
            return f"{self.folder} does not verify."
        names = [f"the {name}" for name in self.unchecked]
        if not names:
            return f"{self.folder} verifies."
        listed = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
        were = "were" if names[1:] else "was"
        return f"{self.folder} verifies, except for {listed}, which {were} not checked."

    def require(self) -> None:
        """Returns if nothing that was checked is broken.

        Errors: VerificationFailed for what is broken; PolicyFailed where all is intact and the
            report does not meet the policy; PolicyInconclusive where that cannot be told.
        """
        broken = [check for check in self.checks if check.result in ("fail", "inconclusive")]
        if not broken:
            return
        error: type[ShieldnetError] = VerificationFailed
        if all(check.judged for check in broken):
            error = PolicyFailed if self.outcome == "fail" else PolicyInconclusive
        lines = (f"\n  {check.name}: {check.words}" for check in broken)
        raise error(f"{self.folder} does not verify:{''.join(lines)}")

    def __str__(self) -> str:
        lines = [f"{one.result:>12}  {one.name:<11}  {one.words}" for one in self.checks]
        return "\n".join([*lines, self.conclusion])

    def __repr__(self) -> str:
        return f"<{self.folder}: {self.outcome}>"


def tried(name: CheckName, check: Callable[[], Checked]) -> Checked:
    """Returns what a check finds, or that it fails; without a package nothing is found.

    Errors: MissingDependency.
    """
    try:
        return check()
    except MissingDependency:
        raise
    except ShieldnetError as broken:
        return Checked(name, "fail", str(broken))


def stopped(done: Iterable[Checked]) -> tuple[Checked, ...]:
    """Adds the checks that were not reached."""
    known = tuple(done)
    rest = CHECKS[len(known) :]
    words = "not reached: the folder is incomplete or was modified"
    return (*known, *(Checked(name, "not checked", words) for name in rest))


def names_of_checks(names: Iterable[str]) -> frozenset[str]:
    """Returns the names of checks; raises ConfigError for any other."""
    given = (names,) if isinstance(names, str) else tuple(names)
    return frozenset(choice("require", name, CHECKS) for name in given)
