"""What one client, or all together, may learn in a window of time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from shieldnet.core.checks import choice, whole
from shieldnet.core.errors import ConfigError
from shieldnet.serving.units import INFINITE, Units, bits_of, limits_of, mu_of

WINDOWS = {"hour": 3600, "day": 86400, "total": 0}
"""Seconds of each window; 0 for the one that never ends. Hours and days start in UTC."""


@dataclass(frozen=True)
class Budget:
    """Limits what is learned in each window of time; no limit is None.

    bits: of all answers together, > 0. mu: Gaussian differential privacy of all answers together,
    > 0. queries: answers, >= 1. window: ``"hour"``, ``"day"`` (both start in UTC) or ``"total"``.
    Errors: ConfigError for a limit that is no positive number.
    """

    bits: float | None = None
    mu: float | None = None
    queries: int | None = None
    window: str = "total"

    def __post_init__(self) -> None:
        choice("window", self.window, tuple(WINDOWS))
        for name in ("bits", "mu"):
            limit = getattr(self, name)
            wrong = isinstance(limit, bool) or not isinstance(limit, int | float | None)
            if wrong or (limit is not None and not 0 < limit < math.inf):
                raise ConfigError(f"Expected a finite {name} > 0, or None, got {name}={limit!r}.")
            if limit is not None:
                object.__setattr__(self, name, float(limit))  # 2000 and 2000.0 are one budget
        if self.queries is not None:
            whole("queries", self.queries, low=1)
        for name, count in zip(("bits", "mu", "queries"), self.limits, strict=True):
            if count == INFINITE and getattr(self, name) is not None:
                raise ConfigError(
                    f"Expected {name} below what a ledger counts (2^53 units), got "
                    f"{name}={getattr(self, name)}. Leave it out for no limit."
                )

    @cached_property
    def limits(self) -> Units:
        """Returns the limits in whole units, rounded down."""
        return limits_of(self.bits, self.mu, self.queries)

    @property
    def is_limited(self) -> bool:
        """Returns whether it limits anything."""
        return any(limit != INFINITE for limit in self.limits)

    def start(self, now: float) -> int:
        """Returns when the window of this moment began, in seconds since the epoch."""
        length = WINDOWS[self.window]
        return int(now // length * length) if length else 0

    def renews_at(self, start: int) -> int | None:
        """Returns when the window ends that began at ``start``; None for never."""
        length = WINDOWS[self.window]
        return start + length if length else None

    def document(self) -> dict[str, object]:
        """Returns the budget as JSON can hold it."""
        return asdict(self)

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Budget:
        """Returns the budget of what ``document`` wrote."""
        return cls(**document)

    def __str__(self) -> str:
        return f"{said(self.limits, self)} {per(self)}"


@dataclass(frozen=True)
class Balance:
    """Says what is left of one budget in the current window.

    budget: the limits. spent: what was charged, leases of other servers included. left:
    whole units that may still be charged. renews_at: seconds since the epoch; None for never.
    """

    budget: Budget
    spent: Units
    left: Units
    renews_at: int | None

    @property
    def bits(self) -> float:
        """Returns the bits that are left; inf without a limit."""
        return bits_of(self.left.bits)

    @property
    def mu(self) -> float:
        """Returns the mu that is left; inf without a limit."""
        return mu_of(self.left.rho)

    @property
    def queries(self) -> float:
        """Returns the answers that are left; inf without a limit."""
        return math.inf if self.left.queries == INFINITE else self.left.queries

    def __str__(self) -> str:
        return f"{said(self.left, self.budget)} {per(self.budget)}"

    def __repr__(self) -> str:
        return f"<{said(self.left, self.budget)} left of {self.budget}>"


def said(units: Units, budget: Budget, *, every: bool = False) -> str:
    """Says the counts of those things that a budget limits, or every count.

    every: also the others, with a dash for what is infinite and has no limit.
    """
    bits, mu, queries = (
        "-" if count == limit == INFINITE else None
        for count, limit in zip(units, budget.limits, strict=True)
    )
    words = (
        f"{bits or f'{bits_of(units.bits):.6g}'} bits",
        f"mu {mu or f'{mu_of(units.rho):.4g}'}",
        f"{queries or units.queries} {'query' if units.queries == 1 else 'queries'}",
    )
    limited = (
        word for word, limit in zip(words, budget.limits, strict=True) if every or limit != INFINITE
    )
    return ", ".join(limited) or "no limit"


def per(budget: Budget) -> str:
    """Says how long a budget counts."""
    return "in total" if budget.window == "total" else f"per {budget.window}"


def as_budgets(name: str, given: Budget | Sequence[Budget] | None) -> tuple[Budget, ...]:
    """Returns budgets as a tuple, at least one: without a limit where none is given.

    Errors: ConfigError for anything else, and for two budgets of one window.
    """
    budgets: Any = (given or Budget(),) if isinstance(given, Budget | None) else given
    is_several = isinstance(budgets, Sequence) and not isinstance(budgets, str) and len(budgets) > 0
    if not is_several or not all(isinstance(budget, Budget) for budget in budgets):
        raise ConfigError(f"Expected {name} as Budget(...) or several of them, got {given!r}.")
    windows = [budget.window for budget in budgets]
    if len(set(windows)) < len(windows):
        raise ConfigError(f"Expected one budget for each window, got {name}={given!r}.")
    return tuple(budgets)
