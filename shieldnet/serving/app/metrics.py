"""What the server counts for Prometheus, in a registry of its own and of no client by name."""

import math
import threading
import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

_LATENCIES_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0)
_SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_SCORES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
_LEFT_EVERY_S = 1.0


class Metrics:
    """Counts requests, charges and refusals, and how long requests took.

    registry: holds these and nothing else. Labels are routes and reasons from fixed lists.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "shieldnet_requests",
            "Requests, by route and status.",
            ("route", "status"),
            registry=self.registry,
        )
        self._charges = Counter(
            "shieldnet_charges", "Requests that were charged.", registry=self.registry
        )
        self._rows = Counter(
            "shieldnet_charged_rows", "Answers that were charged.", registry=self.registry
        )
        self._refusals = Counter(
            "shieldnet_refusals",
            "Requests without an answer, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self._latency = Histogram(
            "shieldnet_latency_seconds",
            "Seconds from a request's arrival to its answer.",
            ("route",),
            buckets=_LATENCIES_S,
            registry=self.registry,
        )
        self._left = Histogram(
            "shieldnet_budget_left_ratio",
            "Share of its budget that a client who was just charged has left; one a second.",
            buckets=_SHARES,
            registry=self.registry,
        )
        self._watched = Counter(
            "shieldnet_watched",
            "Requests that a watch let through, by the shield that answers.",
            ("shield",),
            registry=self.registry,
        )
        self._suspicion = Histogram(
            "shieldnet_suspicion",
            "Score of a client's latest queries after each answer; 0 is ordinary.",
            buckets=_SCORES,
            registry=self.registry,
        )
        self._lock, self._next_left_s = threading.Lock(), 0.0

    def charged(self, rows: int) -> None:
        """Counts a charge; a request that was charged before counts none."""
        self._charges.inc()
        self._rows.inc(rows)

    def watched(self, *, is_harder: bool) -> None:
        """Counts a request that a watch let through."""
        self._watched.labels("harder" if is_harder else "own").inc()

    def suspected(self, score: float) -> None:
        """Observes the score of a client's latest queries."""
        self._suspicion.observe(score)

    def refused(self, reason: str) -> None:
        """Counts a refusal."""
        self._refusals.labels(reason).inc()

    def finished(self, route: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def wants_left(self) -> bool:
        """Returns whether a budget is to be looked up, which is so once a second."""
        now = time.monotonic()
        with self._lock:
            wanted = now >= self._next_left_s
            if wanted:
                self._next_left_s = now + _LEFT_EVERY_S
        return wanted

    def left(self, balances: Iterable[Any]) -> None:
        """Observes the smallest share that is left of any limit of a client's budgets."""
        shares = [
            min(1.0, getattr(balance, name) / limit)
            for balance in balances
            for name in ("bits", "mu", "queries")
            if (limit := getattr(balance.budget, name)) is not None and math.isfinite(limit)
        ]
        if shares:
            self._left.observe(min(shares))
