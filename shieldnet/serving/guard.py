"""A shield behind a ledger: every answer is charged to its client before it exists."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from inspect import signature
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from shieldnet.core.checks import flag
from shieldnet.core.errors import AnswerError, ConfigError, DataError
from shieldnet.data.hashing import weights_hash
from shieldnet.outputs.micro_batches import arrays
from shieldnet.outputs.nested import is_list_of_dicts, leaves
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.serving.asked import content, rows_of
from shieldnet.serving.budget import Balance, Budget, as_budgets, said
from shieldnet.serving.clients import current_client
from shieldnet.serving.ledger import Charge, Ledger
from shieldnet.serving.query_patterns import require_numbers
from shieldnet.serving.repeats import Repeats
from shieldnet.serving.units import INFINITE, units_of
from shieldnet.serving.watch import Watch
from shieldnet.shield.module import Shield
from shieldnet.shield.settings import Extent

_PER_CLIENT = ("bits_per_client", "mu_per_client", "queries_per_client")


class Guard:
    """Answers as its shield does, as long as the client's budget lasts.

    shield: whose answers have an extent: declared (``sn.Shield(..., extent=sn.Extent(10))``), given
        here, or that of its answers so far. An answer of other classes or of more positions than
        that is charged and then refused.
    ledger: an address (``"sqlite:///budget.db"``) or a ``Ledger``, which has its own budgets.
    bits_per_client, mu_per_client, queries_per_client: limits for each client in each
        ``window``: ``"hour"``, ``"day"`` or ``"total"``. in_all: of all clients together.
    extent: the answer's classes, exactly, and its positions at most: ``sn.Extent(classes=10)``. A
        budget of queries alone needs none; bits and mu are then recorded as infinite, as they are
        for a list of dicts, such as a detector's, which has no extent.
    free_repeats: charges no row that this client asked before, as far as this process remembers;
        only for a shield that gives the same answer again.
    watch: looks at the queries of each client and may have a harder shield answer, or refuse.

    Guarantee: what a client was told costs at most the budget: by bits of maximal leakage and by mu
    of Gaussian differential privacy, for adaptively chosen questions, as ``PrivacyCost`` adds them.
    Premises: one name is one client (who has several has several budgets); the ledger's.
    Errors: ConfigError for no budget, for one that holds no answer, and for a shield whose answers
    cost infinitely much of what is limited.
    """

    def __init__(
        self,
        shield: Shield,
        *,
        ledger: str | Ledger,
        bits_per_client: float | None = None,
        mu_per_client: float | None = None,
        queries_per_client: int | None = None,
        window: str = "total",
        in_all: Budget | Sequence[Budget] | None = None,
        extent: Extent | None = None,
        free_repeats: bool = False,
        watch: Watch | None = None,
    ) -> None:
        self.shield = _sized(shield, extent)
        if watch is not None:
            watch.harder_than(self.shield)  # its cost is at most this one's, or it is refused now
        self.watch = watch
        self._repeats = Repeats() if flag("free_repeats", free_repeats) else None
        if free_repeats and not shield.deterministic:
            raise ConfigError(
                "Expected a shield without noise for free_repeats=True: a fresh draw of noise is a "
                "new answer, and averaging many of them removes it."
            )
        self.cost = _cost(self.shield)
        self.units = units_of(self.cost)
        limits = (bits_per_client, mu_per_client, queries_per_client)
        if isinstance(ledger, Ledger):
            said_here = (*limits, in_all, None if window == "total" else window)
            if any(setting is not None for setting in said_here):
                raise ConfigError(
                    "Expected the budgets in the ledger, which has its own: "
                    "Ledger(url, per_client=Budget(bits=...))."
                )
            self._require_budget((*ledger.per_client, *ledger.in_all))
            self.ledger, self._is_own = ledger, False
            return
        mine = Budget(*limits, window=window)
        self._require_budget((mine, *as_budgets("in_all", in_all)))
        self.ledger, self._is_own = Ledger(ledger, per_client=mine, in_all=in_all), True

    def _require_budget(self, budgets: Sequence[Budget]) -> None:
        if not any(budget.is_limited for budget in budgets):
            raise ConfigError(f"Expected a budget: {', '.join(_PER_CLIENT)}, in_all.")
        names = ("bits", "mu", "queries")
        for budget in budgets:
            for name, limit, each in zip(names, budget.limits, self.units, strict=True):
                if limit != INFINITE and each == INFINITE:
                    raise ConfigError(self._infinite(name))
            if not budget.limits.covers(self.units):
                raise ConfigError(
                    f"The budget of {budget} holds not one answer, which costs "
                    f"{said(self.units, budget)}."
                )

    def _infinite(self, name: str) -> str:
        extent = self.shield.extent
        if extent is None:
            return (
                f"Expected extent= beside a budget of {name}, the largest answer that is charged, "
                "as sn.Extent(classes=10): what it costs must be known before it exists. A budget "
                "of queries alone needs none (queries_per_client=1000), and is the only one for a "
                "detector."
            )
        fix = _FIX[name]
        if extent.any_number:
            fix = (
                "How many rows a list of dicts has is part of the answer, and nothing bounds it: "
                "use a budget of queries, queries_per_client=1000."
            )
        return (
            f"An answer of this shield costs infinitely many {name}, so that no budget of {name} "
            f"holds one. {fix}"
        )

    def charge(
        self, client: str, rows: int = 1, *, key: str | None = None, content: bytes | None = None
    ) -> Charge:
        """Charges answers of this shield to a client, without giving them.

        For servers that answer elsewhere or in batches of several clients: charge first, then ask
        ``guard.shield``. key, content: as in ``Ledger.charge``; a key buys no answer of another
        model, whose weights are hashed once, at the first key. A shield that draws gives a new
        answer to a repeated request, which is charged anew.
        Errors: BudgetExceeded; LedgerUnavailable.
        """
        if key is None or not self.shield.deterministic:
            key = content = None
        elif isinstance(content, bytes):
            content = self._identity + content
        return self.ledger.charge(client, self.units, rows, key=key, content=content)

    def __call__(
        self, *args: Any, client: str | None = None, request_id: str | None = None, **kwargs: Any
    ) -> Any:
        """Answers like the shield, each row charged before any of them is computed.

        client: who asks, by default that of the ``client(...)`` block around. request_id: names the
        request, so that its repeats within a day are charged once, also after a crash; another
        question, model or setting under one name is refused, and a shield that draws charges its
        repeats anew. Weights are hashed once, at the first such request.
        Errors: BudgetExceeded and QueriesRefused: nothing is charged, and no row answered. Those of
        the ledger, before; of the shield, after the charge, which stays.
        """
        name = current_client() if client is None else client
        if name is None:
            raise ConfigError(
                "Expected the client that is charged: guard(x, client=name), or a call inside of "
                "`with sn.serving.client(name):`."
            )
        extent = self.shield.extent
        rows = rows_of(args, kwargs, lists_are_rows=extent is not None and extent.any_number)
        if request_id is not None and not (isinstance(request_id, str) and request_id):
            raise ConfigError(f"Expected request_id as a word, got {request_id!r}.")
        shield = self.shield if self.watch is None else self.watch.choose(name, self.shield)
        watched = None if self.watch is None else self._watched(self.watch, rows, args, kwargs)
        # What the watch's harder shield says of a row is no repeat of what this one said.
        is_own = shield is self.shield
        key = request_id if is_own else None
        asked = None if key is None else content(args, kwargs)
        repeats = self._repeats if is_own else None
        new = None if repeats is None else repeats.new(name, args, kwargs, rows)
        charged = rows if new is None else len(new)
        with self.charge(name, charged, key=key, content=asked):
            if repeats is not None and new:
                repeats.remember(new)
            answer = shield(*args, **kwargs)
        self._require_at_most(rows, answer)
        if self.watch is not None and watched is not None:
            released = torch.as_tensor(answer) if isinstance(answer, np.ndarray) else answer
            self.watch.note(name, watched, shield.distribution(released))
        return answer

    def _watched(
        self, watch: Watch, rows: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Returns what a watch looks at: the model's first input, wherever it is in the call."""
        values: tuple[Any, ...] = (*args, *kwargs.values())
        with suppress(TypeError):  # of a call that does not fit, which the model refuses
            bound = signature(self.shield.model.forward).bind(*args, **kwargs)
            values = tuple(bound.arguments.values())
        listed = (value if isinstance(value, tuple) else (value,) for value in values)
        first = next(arrays(chain.from_iterable(listed)), None)
        if first is None:
            raise ConfigError("Expected a tensor or an array, which a watch can look at.")
        if rows > watch.profile.memory:
            raise DataError(
                f"Expected at most {watch.profile.memory} rows in a call, which a watch judges "
                f"before the next, got {rows}."
            )
        return require_numbers(torch.as_tensor(first))

    @cached_property
    def _identity(self) -> bytes:
        """Names model and settings: a request's key buys no answer of another model."""
        said = f"{weights_hash(self.shield.model)} {self.shield.settings.digest()}"
        return said.encode()

    def _require_at_most(self, rows: int, answer: Any) -> None:
        if is_list_of_dicts(answer):
            answered = len(answer)
        else:
            is_array = isinstance(answer, np.ndarray)  # of a function or an estimator
            released = answer if is_array else self.shield.answer_in(answer)
            fields = [leaf for _, leaf in leaves(answer) if isinstance(leaf, Tensor) and leaf.ndim]
            answered = max([len(released) if released.ndim else 1, *map(len, fields)])
        if answered > rows:
            raise AnswerError(
                f"Expected at most {rows} answers, for which the client was charged, got "
                f"{answered}; nothing was released."
            )

    async def answer(
        self, *args: Any, client: str | None = None, request_id: str | None = None, **kwargs: Any
    ) -> Any:
        """Answers like a call, in a thread, so that other requests go on meanwhile."""
        return await asyncio.to_thread(
            self.__call__, *args, client=client, request_id=request_id, **kwargs
        )

    def left(self, client: str) -> tuple[Balance, ...]:
        """Returns what is left of each of a client's budgets."""
        return self.ledger.left(client)

    def require_writable(self) -> None:
        """Refuses a ledger that could not record a charge now. Errors: LedgerUnavailable."""
        self.ledger.require_writable()

    def close(self) -> None:
        """Closes the ledger, if the guard opened it."""
        if self._is_own:
            self.ledger.close()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    if not TYPE_CHECKING:  # which would then allow every name

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            raise AttributeError(
                f"A Guard has no {name}: it answers calls, guard(x, client=name), and charges "
                f"them. The shielded model, with what it has beside answers, is guard.shield, "
                "whose answers are not charged."
            )

    def __repr__(self) -> str:
        budgets = ", ".join(str(budget) for budget in self.ledger.per_client)
        return f"Guard({self.shield!r}, each client: {budgets})"


def _sized(shield: Shield, extent: Extent | None) -> Shield:
    """Returns a shield whose answers are at most as large as agreed, where they have an extent."""
    if not isinstance(shield, Shield):
        raise ConfigError(f"Expected a Shield, as sn.harden(model), got {type(shield).__name__}.")
    declared, known = shield.settings.extent, shield.extent
    if declared is not None:
        if extent in (None, declared):
            return shield
        raise ConfigError(f"Expected no extent=, as the shield declares {declared}, got {extent}.")
    if known is not None and known.any_number:
        if extent is None:
            return shield
        raise ConfigError(
            f"Expected no extent= for a list of dicts, as a detector's, got {extent}: nothing "
            "bounds how many rows it has."
        )
    agreed = known if extent is None else extent
    return (
        shield if agreed is None else Shield(shield.model, replace(shield.settings, extent=agreed))
    )


def _cost(shield: Shield) -> PrivacyCost:
    """Returns what an answer costs; of unknown size, infinitely much."""
    return PrivacyCost() if shield.extent is None else shield.cost()


_FIX = {
    "bits": 'Round or truncate it: sn.harden(model, "balanced"), or use a budget of mu or queries.',
    "mu": "Add noise: sn.ClipNorm(...) and sn.GaussianNoise(...), or use a budget of bits or "
    "queries.",
}
