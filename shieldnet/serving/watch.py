"""The extraction watch: what a subject's queries look like decides how it is answered."""

import logging
import math
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from threading import Lock
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary, WeakSet

import torch
from numpy.typing import NDArray
from torch import Tensor

from shieldnet.core.checks import choice, fraction, positive, whole
from shieldnet.core.errors import ConfigError, DataError, ShieldnetError
from shieldnet.data.examples import raw_bytes
from shieldnet.defenses import Defense
from shieldnet.serving.query_patterns import (
    Profile,
    Queries,
    Suspicion,
    earlier_distances,
    require_numbers,
    shapiro_wilk,
)
from shieldnet.shield.module import Shield
from shieldnet.shield.preset_chains import PRESETS

Arrays = NDArray[Any]
Action = Literal["answer", "log", "harder", "refuse"]
_LOG = logging.getLogger("shieldnet")
_KEY_BYTES, _HASH_BYTES = 16, 8
_SHAPED_EVERY = 16  # queries after which the shape of the distances is looked at again: it is slow


class QueriesRefused(ShieldnetError):
    """Raised if a subject's queries look like an extraction; nothing was charged or released.

    renews_at: when the subject starts anew (seconds since the epoch, UTC).
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, renews_at: int) -> None:
        super().__init__(message)
        self.renews_at = renews_at


@dataclass(frozen=True)
class WatchPolicy:
    """Says what follows from a suspicion: log it, answer by a harder shield, or refuse.

    log_above, harder_above, refuse_above: scores from 0 to 1, in this order; with 1.0 it never
    happens. harder: a preset's name, or defenses, which answer in place of the shield's own.
    refuse_s: seconds that a refusal lasts; then the subject starts anew.
    """

    log_above: float = 0.15
    harder_above: float = 0.3
    refuse_above: float = 0.6
    harder: str | tuple[Defense, ...] = "strict"
    refuse_s: float = 3600.0

    def __post_init__(self) -> None:
        names = ("log_above", "harder_above", "refuse_above")
        limits = [fraction(name, getattr(self, name)) for name in names]
        if limits != sorted(limits):
            raise ConfigError(
                f"Expected log_above <= harder_above <= refuse_above, got {limits}. "
                "Use 1.0 for what should never happen."
            )
        positive("refuse_s", self.refuse_s)
        if isinstance(self.harder, str):
            choice("harder", self.harder, tuple(PRESETS))
        elif not (
            isinstance(self.harder, tuple)
            and self.harder
            and all(isinstance(defense, Defense) for defense in self.harder)
        ):
            raise ConfigError(
                f"Expected harder as a preset's name or a tuple of defenses, got {self.harder!r}."
            )

    def action(self, score: float) -> Action:
        """Returns what follows from a score."""
        if score > self.refuse_above:
            return "refuse"
        if score > self.harder_above:
            return "harder"
        return "log" if score > self.log_above else "answer"


@dataclass
class _Subject:
    """What is kept of one subject: its latest queries, and what was found of each."""

    queries: Queries = field(default_factory=Queries.none)
    digests: list[bytes] = field(default_factory=list)
    novel: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    distances: Tensor = field(default_factory=lambda: torch.empty(0))
    normality: float = 1.0
    unshaped: int = 0
    suspicion: Suspicion = field(default_factory=Suspicion)
    action: Action = "answer"
    refused_until: float = -math.inf
    lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, profile: Profile, asked: Queries, digests: list[bytes]) -> None:
        """Takes in queries that are no repeats, and forgets the oldest."""
        memory, first = profile.memory, len(self.queries)
        queries = self.queries.beside(asked)
        distances = torch.cat([self.distances, earlier_distances(queries, first)])
        novel = torch.cat([self.novel, profile.is_novel(asked)])
        self.queries = queries.at(torch.arange(len(queries))[-memory:])
        self.digests = [*self.digests, *digests][-memory:]
        self.novel, self.distances = novel[-memory:], distances[-memory:]
        self.unshaped += len(asked)
        if self.unshaped >= _SHAPED_EVERY:
            self.normality, self.unshaped = shapiro_wilk(self.distances), 0
        self.suspicion = Suspicion.of(
            profile,
            self.queries,
            novel=self.novel,
            distances=self.distances,
            normality=self.normality,
        )

    def start_anew(self) -> None:
        """Forgets the queries."""
        self.queries, self.digests = Queries.none(), []
        self.novel, self.distances = torch.empty(0, dtype=torch.bool), torch.empty(0)
        self.normality, self.unshaped = 1.0, 0
        self.suspicion, self.action = Suspicion(), "answer"

    def after_fork(self) -> None:
        """Makes a new lock in a forked child; forgets queries that were being taken in."""
        if self.lock.locked():
            action = self.action
            self.start_anew()
            self.action = action  # no fork lifts a refusal
        self.lock = Lock()


class Watch:
    """Keeps statistics of each subject's latest queries, and acts on them by a policy.

    ``choose`` comes before an answer: it gives the shield that answers, or refuses. ``note`` comes
    after it. A subject is judged by its earlier queries, so a batch is judged after it is answered.

    profile: of ordinary queries. max_subjects: how many are kept; the one that asked least recently
    goes. A subject takes about 40 kB at a memory of 256. clock: seconds since the epoch.

    Kept, in memory alone: of a subject its keyed hash, and of each of its latest ``memory`` queries
    a projection to 32 numbers, a keyed hash, the released winner and its margin. Keys and the
    projection's seed are secret and leave with the process. Reading the memory
    gives inputs of up to 32 numbers, and 32 sums of larger ones; raw inputs are not kept.
    Exact repeats are passed over: a ledger answers for them. Safe with several threads, and in a
    forked child, which goes on with subjects of its own.
    NOT promised: that an extraction is seen. Many subjects with few queries each (Sybils), queries
    that look ordinary, and pairs of near inputs more than ``memory`` queries apart are not seen;
    nor do replicas know of each other's subjects.
    """

    def __init__(
        self,
        profile: Profile,
        policy: WatchPolicy | None = None,
        *,
        max_subjects: int = 4096,
        on_action: Callable[[str, Action, Suspicion], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(profile, Profile):
            raise ConfigError(
                f"Expected a Profile of natural inputs, got {type(profile).__name__}: "
                "Watch.of(shield, inputs, policy)."
            )
        self.profile, self.policy = profile, policy or WatchPolicy()
        self.max_subjects = whole("max_subjects", max_subjects, low=1)
        self.on_action, self.clock = on_action, clock
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._subjects: OrderedDict[bytes, _Subject] = OrderedDict()
        self._harder: WeakKeyDictionary[Shield, Shield] = WeakKeyDictionary()
        self._lock = Lock()
        _all.add(self)

    @classmethod
    def of(
        cls,
        shield: Shield,
        inputs: Tensor,
        policy: WatchPolicy | None = None,
        *,
        memory: int = 256,
        max_subjects: int = 4096,
        on_action: Callable[[str, Action, Suspicion], object] | None = None,
    ) -> "Watch":
        """Asks the shield about natural inputs, at least 200, and learns what is ordinary.

        inputs: as clients send them, best none that trained the model.
        Errors: DataError for too few inputs and for tokens; ConfigError for a policy whose harder
        shield costs more than ``shield``.
        """
        distribution = shield.distribution(shield(inputs))
        profile = Profile.of(inputs, distribution, memory=memory)
        watch = cls(profile, policy, max_subjects=max_subjects, on_action=on_action)
        watch.harder_than(shield)
        return watch

    def choose(self, subject: str, shield: Shield) -> Shield:
        """Returns the shield that answers a subject: this one, or the policy's harder one.

        Errors: QueriesRefused.
        """
        known = self._known(subject)
        with known.lock:
            action, until = known.action, known.refused_until
            if action == "refuse" and self.clock() >= until:
                known.start_anew()
                action = "answer"
        if action == "refuse":
            raise QueriesRefused(
                "The queries of this client look like an extraction of the model, and are refused "
                "for a time. Nothing was charged or released.",
                math.ceil(until),
            )
        return self.harder_than(shield) if action == "harder" else shield

    def note(self, subject: str, inputs: Tensor | Arrays, distribution: Tensor) -> Suspicion:
        """Takes in queries and what was released about them; returns the suspicion after them.

        Shapes: inputs (rows, ...), distribution (rows, classes) as ``Shield.distribution`` reads
        an answer.
        Errors: DataError for inputs of another shape than the natural ones, NaN and tokens.
        """
        inputs, shape = torch.as_tensor(inputs), self.profile.scale.shape
        if inputs.shape[1:] != shape or len(inputs) != len(distribution):
            raise DataError(
                f"Expected rows of {tuple(shape)} with an answer each, got "
                f"{tuple(inputs.shape)} and {tuple(distribution.shape)}."
            )
        rows = require_numbers(inputs.detach().cpu())
        asked = self.profile.read(rows, distribution.detach().cpu())
        digests = [self._hash(raw_bytes(row)) for row in rows]
        known = self._known(subject)
        with known.lock:
            before, new = known.action, _unseen(digests, known.digests)
            # In parts, as every query of a part is compared with every other.
            for part in torch.tensor(new, dtype=torch.int64).split(self.profile.memory):
                known.add(self.profile, asked.at(part), [digests[place] for place in part])
            suspicion = known.suspicion
            action = self.policy.action(suspicion.score)
            if before == "refuse" and self.clock() < known.refused_until:
                action = before  # an answer that was on its way lifts no refusal
            elif action == "refuse":
                known.refused_until = self.clock() + self.policy.refuse_s
            known.action = action
        if action not in (before, "answer"):
            self._tell(subject, action, suspicion)
        return suspicion

    def harder_than(self, shield: Shield) -> Shield:
        """Returns the policy's harder shield of the same model.

        Errors: ConfigError where an answer of it may cost more than one of ``shield``, whose cost
        is what a subject is charged, and before the extent of an answer is known.
        """
        with self._lock:
            if shield not in self._harder:
                self._harder[shield] = _harder(shield, self.policy.harder)
            return self._harder[shield]

    def forget(self, subject: str) -> None:
        """Drops all that is kept of a subject, a refusal as well."""
        with self._lock:
            self._subjects.pop(self._hash(subject.encode()), None)

    def _known(self, subject: str) -> _Subject:
        key = self._hash(subject.encode())
        with self._lock:
            known = self._subjects.setdefault(key, _Subject())
            self._subjects.move_to_end(key)
            if len(self._subjects) > self.max_subjects:
                self._subjects.popitem(last=False)
        return known

    def _hash(self, content: bytes) -> bytes:
        return blake2b(content, key=self._key, digest_size=_HASH_BYTES).digest()

    def _tell(self, subject: str, action: Action, suspicion: Suspicion) -> None:
        name = self._hash(subject.encode()).hex()
        _LOG.warning(
            "Queries of subject %s look like an extraction (%s): %s", name, action, suspicion
        )
        if self.on_action is not None:
            try:
                self.on_action(subject, action, suspicion)
            except Exception as failed:  # the owner's own, whatever it raises: the answer is paid
                _LOG.error("on_action failed: %s", type(failed).__name__)


def _unseen(digests: list[bytes], seen: list[bytes]) -> list[int]:
    """Returns the places of those that are no repeats, of what was seen or of each other."""
    first: dict[bytes, int] = dict.fromkeys(seen, -1)
    for place, digest in enumerate(digests):
        first.setdefault(digest, place)
    return [place for place in first.values() if place >= 0]


def _harder(shield: Shield, harder: str | tuple[Defense, ...]) -> Shield:
    defenses = PRESETS[harder] if isinstance(harder, str) else harder
    extent = shield.extent
    if extent is None:
        raise ConfigError(
            "Expected a shield whose cost is known before a harder one can be compared with it: "
            "give it extent=Extent(classes=...), or ask it once."
        )
    if extent.any_number:
        raise ConfigError("Expected a shield without watch=, which reads no list of dicts.")
    settings = replace(shield.settings, defenses=defenses)
    own, other = shield.settings.cost(extent), settings.cost(extent)
    dearer = [name for name in ("bits", "mu", "pure") if getattr(other, name) > getattr(own, name)]
    if dearer:
        raise ConfigError(
            f"Expected a harder shield that costs at most what {shield.describe()} costs, whose "
            f"cost is charged; {settings.describe('the harder one')} costs more {dearer[0]} "
            f"({getattr(other, dearer[0]):.4g} against {getattr(own, dearer[0]):.4g}). Choose "
            "WatchPolicy(harder=...) of the same kind, coarser or with more noise."
        )
    return Shield(shield.model, settings)


def _after_fork_in_child() -> None:
    """Makes new locks in a forked child: a thread of the parent may have held the old ones."""
    for watch in _all:
        watch._lock = Lock()
        for known in watch._subjects.values():
            known.after_fork()


_all: WeakSet[Watch] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
