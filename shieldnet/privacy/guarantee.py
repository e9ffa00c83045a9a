"""Guarantees: the epsilon that private training proves, accounted step by step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shieldnet.core.checks import choice, fraction, positive, quietly, renamed, unwarned, whole
from shieldnet.core.errors import ConfigError
from shieldnet.privacy.cost import PrivacyCost, rounded_up
from shieldnet.privacy.signing import signature_of, verify
from shieldnet.privacy.steps import MAX_STEPS, Steps

if TYPE_CHECKING:  # importing scipy takes a second
    from shieldnet.privacy.losses import Losses
SCOPES = ("steps", "weights")
MAX_NOISE = 1e4
_VERSION = 2
_COUNTED = ("noise_multiplier", "sample_rate", "steps", "records", "delta")
_IN_FILES = {"noise_multiplier": "noise", "sample_rate": "rate"}  # names in files never change
_MIN_DELTA = 1e-12
_MAX_BEFORE = 16
_MAX_LINES, _MAX_LENGTH = 32, 1000
_ORDERS = [*range(2, 33), 40, 48, 64, 96, 128, 192, 256, 384, 512, 1024]  # whole numbers are fast
_TAIL = 1e-10
"""The smallest delta for which mu of subsampled steps holds."""
NOT_COVERED = (
    "anyone who can read the training data, the gradients or the noise",
    "what many records reveal together: each record is protected by itself",
    "records that occur more than once in the data: epsilon grows with every copy",
    "choices made by looking at the data beforehand, such as the learning rate",
    "what preflight prints: measured on a few records, without noise",
)
"""Limits that every guarantee prints."""
PUBLIC = (
    "the starting weights, frozen parts, buffers, and any data in the code of the model and loss "
    "do not depend on the records (start='public')"
)
UNSTATED = (
    "of the steps only: what the starting weights, frozen parts and buffers already knew about the "
    "records is not stated (start='public', or the Guarantee of the start)"
)
COMPOSED = "the starting weights are those of their own guarantee, which is composed with this one"
KERNELS = (
    "the processor computes a record's gradient to the same digits, whatever other records are in "
    "its batch"
)
ONE_MODEL = "only one model is published of all continuations of this run, on any machine"


@renamed(noise="noise_multiplier", rate="sample_rate")
@dataclass(frozen=True)
class Guarantee:
    """Bounds what a privately trained model reveals about any of its training records.

    noise_multiplier: standard deviation of the noise, as a multiple of the clip norm (the most that
    one record moves a sum). sample_rate: probability, in (0, 1], that a step draws a record,
    independently of all others. steps: number of steps taken. records: number of training records,
    assumed public. delta: the delta at which ``epsilon`` is stated. caveats: further limits of the
    claim. weights: hash of the weights that it covers, "" if none yet. variation: bound on the
    total variation between all draws and the ideal distribution, over all steps and weights; delta
    includes it. run: a unique name of the training. start: hash of the starting weights. premises:
    assumptions of the claim. scope: ``weights``, or ``steps`` if what the starting weights knew is
    not stated; the claim then covers what these steps added, not the weights. before: guarantees of
    the starting weights, composed with the steps. seal: ``signed`` or ``unsigned`` if it was read
    from a file, "" if it was made here.

    Neighbors: two sets of training data, one of which has one record more.
    Guarantee: if every step draws all records, the Gaussian mechanism, composed exactly; otherwise
    the privacy losses of Poisson-subsampled steps, composed as upper bounds.
    Source: Dong, Roth, Su 2022; Doroshenko et al. 2022.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    records: int
    delta: float
    caveats: tuple[str, ...] = ()
    weights: str = ""
    variation: float = 0.0
    run: str = ""
    start: str = ""
    premises: tuple[str, ...] = ()
    scope: str = "steps"
    before: tuple["Guarantee", ...] = ()
    seal: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if positive("noise_multiplier", self.noise_multiplier) > MAX_NOISE:
            raise ConfigError(
                f"Expected a noise_multiplier of at most {MAX_NOISE:g}, got "
                f"{self.noise_multiplier:g}: nothing can be learned with more noise."
            )
        whole("steps", self.steps, low=0, high=MAX_STEPS)
        whole("records", self.records, low=1, high=2**53)
        if not fraction("sample_rate", self.sample_rate) > 0:
            raise ConfigError(f"Expected a sample_rate above 0, got {self.sample_rate}.")
        if not 0 < fraction("delta", self.delta) < 1:
            raise ConfigError(f"Expected delta above 0 and below 1, got {self.delta}.")
        fraction("variation", self.variation)
        choice("scope", self.scope, SCOPES)

    @cached_property
    def epsilon(self) -> float:
        """Returns epsilon at ``delta``; inf if ``variation`` alone exceeds ``delta``."""
        return self.epsilon_at(self.delta)

    def epsilon_at(self, delta: float) -> float:
        """Returns epsilon at a given delta."""
        epsilon = self._ideal_epsilon(delta)
        for _ in range(60):
            left = delta - self._drawn_delta(epsilon)
            if not left > 0:
                return math.inf
            before, epsilon = epsilon, self._ideal_epsilon(left)
            if epsilon <= before:
                return epsilon
        return math.inf

    def delta_at(self, epsilon: float) -> float:
        """Returns a delta for which the training is (epsilon, delta)-differentially private."""
        if not epsilon >= 0:
            raise ConfigError(f"Expected epsilon >= 0, got {epsilon}.")
        ideal = self._gaussian if self._is_gaussian else self._losses
        return min(1.0, ideal.delta(epsilon) + self._drawn_delta(epsilon))

    @cached_property
    def mu(self) -> float:
        """Returns mu of Gaussian differential privacy, down to a delta of 1e-10.

        Subsampled steps are not Gaussian; theirs is the smallest mu that covers them. It refers to
        the ideal distribution, and is inf if ``variation`` matters at such a delta.
        """
        if self._variation > _TAIL / 4:
            return math.inf
        if self._is_gaussian:
            return self._gaussian.mu
        epsilons, deltas = self._curve
        return float(_mu_of(epsilons, deltas).max())

    def distinguish(self, fpr: float) -> float:
        """Bounds the true-positive rate of any membership inference at a false-positive rate."""
        return float(self._distinguish(np.array([fraction("fpr", fpr)]))[0])

    def least_fpr(self, tpr: float) -> float:
        """Returns a lower bound on any adversary's false-positive rate at a true-positive rate."""
        rate = max(0.0, tpr - self._variation)
        if self._is_gaussian:
            ideal = 1 - self._gaussian.distinguish(min(1.0, 1 - rate))
        else:
            epsilons, deltas = self._curve
            by_high = ((rate - deltas) * np.exp(-epsilons)).max()
            with np.errstate(over="ignore", invalid="ignore"):
                by_low = np.nan_to_num(1 - deltas - np.exp(epsilons) * (1 - rate), nan=-1.0).max()
            ideal = max(by_high, by_low)
        return float(max(0.0, ideal - self._variation))

    def reconstruction(self, prior: float) -> float:
        """Bounds the probability that any adversary reconstructs a record.

        prior: its probability of success without the model.
        Source: Hayes, Mahloujifar, Balle 2023 (arXiv:2302.07225): success is the true-positive
        rate of a test whose false-positive rate is the prior.
        """
        return self.distinguish(prior)

    def auc(self) -> float:
        """Bounds any adversary's AUC, by the mean of ``distinguish`` over false-positive rates."""
        # The bound increases with the rate, so the right ends of the cells overestimate the area.
        return float(self._distinguish(np.linspace(0, 1, 2001)[1:]).mean())

    def cross_check(self) -> float:
        """Returns epsilon by Opacus's Renyi accountant: an independent, looser upper bound."""
        accountant = quietly("opacus.accountants").RDPAccountant()
        accountant.history = [(step.noise, step.rate, step.count) for step in self._steps]
        with unwarned("Optimal order is"):  # it is above all the same
            return max(0.0, float(accountant.get_epsilon(self.delta, alphas=_ORDERS)))

    def document(self) -> dict[str, Any]:
        """Returns a JSON-serializable dict for ``read``, with epsilon and other results.

        It is signed if the environment has a key (SHIELDNET_KEY), unless it was read unsigned.
        """
        claimed = self._claims()
        signed = {} if self.seal == "unsigned" else signature_of(claimed)
        shown = {"epsilon": self.epsilon, "mu": self.mu, "words": self.words, "text": str(self)}
        finite = {name: "infinite" if value == math.inf else value for name, value in shown.items()}
        return {**claimed, **signed, **finite}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Guarantee":
        """Restores a guarantee from a document; epsilon is recomputed, not read.

        Errors: KeyError, TypeError or ConfigError for content that no training writes, and for a
        signature that does not match the environment's key.
        """
        made = _read(document, depth=0)
        seal = verify(made._claims(), document.get("signature"))
        return cls(**{**_values(made), "seal": seal})

    @property
    def words(self) -> str:
        """Returns a short text with epsilon, delta and the scope."""
        of = " of these steps" if self.scope == "steps" else ""
        return f"epsilon {rounded_up(self.epsilon)} at delta {self.delta:g}{of}"

    def __str__(self) -> str:
        drawn = (
            "all records"
            if self.sample_rate == 1
            else f"each record with chance {self.sample_rate:.4g}"
        )
        each = f"for each of {self.records} training records"
        if self.scope == "weights":
            head = [f"Guarantee {each}"]
        else:
            head = [
                f"Guarantee of these {self.steps} steps, {each}",
                "Not of the weights: what the start already knew about the records is not stated.",
            ]
        trainings = "training" if len(self.before) == 1 else "trainings"
        more = f", composed with {len(self.before)} earlier {trainings}" if self.before else ""
        premises = [f"  - {premise}" for premise in self.premises]
        named = [f"Run {self.run}"] if self.run else []
        return "\n".join(
            [
                *head,
                f"Proven for {self.steps} steps on {drawn}, noise {self.noise_multiplier:.4g} x "
                f"clip norm{more}:",
                f"  {self.words}",
                f"  mu      {rounded_up(self.mu)}",
                f"  membership: TPR <= {rounded_up(self.distinguish(0.01))} at 1% FPR",
                "  reconstruction of a record guessed with chance 0.001: <= "
                f"{rounded_up(self.reconstruction(0.001))}",
                *(["Assumptions:", *premises] if premises else []),
                "Not covered:",
                *(f"  - {limit}" for limit in (*self.caveats, *NOT_COVERED)),
                *named,
            ]
        )

    @property
    def _steps(self) -> tuple[Steps, ...]:
        own = (Steps(self.noise_multiplier, self.sample_rate, self.steps),) if self.steps else ()
        return own + tuple(step for earlier in self.before for step in earlier._steps)

    @property
    def _variation(self) -> float:
        return min(1.0, self.variation + sum(earlier._variation for earlier in self.before))

    def _drawn_delta(self, epsilon: float) -> float:
        """Returns what the total variation of the draws adds to delta."""
        if not self._variation:
            return 0.0
        return min(1.0, self._variation * (1 + math.exp(min(epsilon, 700.0))))

    def _ideal_epsilon(self, delta: float) -> float:
        return (self._gaussian if self._is_gaussian else self._losses).epsilon(delta)

    def _distinguish(self, rates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bounds true-positive rates at many false-positive rates."""
        raised = np.minimum(rates + self._variation, 1.0)
        if self._is_gaussian:
            ideal = np.array([self._gaussian.distinguish(rate) for rate in raised.tolist()])
        else:
            epsilons, deltas = self._curve
            shrink, rates = np.exp(-epsilons), raised[:, None]
            with np.errstate(over="ignore", invalid="ignore"):
                by_low = np.nan_to_num(np.exp(epsilons) * rates, nan=0.0, posinf=1.0) + deltas
            by_high = 1 - (1 - deltas - rates) * shrink
            ideal = np.minimum(by_low, by_high).min(axis=1)
        return np.clip(ideal + self._variation, 0.0, 1.0)

    @property
    def _is_gaussian(self) -> bool:
        """Returns whether the closed form is exact: all records in every step, or no steps."""
        return all(step.rate == 1 for step in self._steps)

    @property
    def _gaussian(self) -> PrivacyCost:
        return PrivacyCost(mu=math.sqrt(sum(step.count / step.noise**2 for step in self._steps)))

    @cached_property
    def _losses(self) -> "Losses":
        from shieldnet.privacy.losses import Losses

        return Losses(self._steps)

    @cached_property
    def _curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Samples (epsilon, delta) from epsilon 0 to where delta is 1e-10."""
        return self._losses.curve()

    def _claims(self) -> dict[str, Any]:
        """Returns the signed content: everything that is claimed, nothing computed from it."""
        settings = _values(self).items()
        values = {_IN_FILES.get(name, name): value for name, value in settings if name != "seal"}
        values["before"] = [earlier._claims() for earlier in self.before]
        lists = {name: list(values[name]) for name in ("caveats", "premises")}
        return {"version": _VERSION, **values, **lists}


def _values(guarantee: Guarantee) -> dict[str, Any]:
    return {entry.name: getattr(guarantee, entry.name) for entry in fields(guarantee)}


def _read(document: object, depth: int) -> Guarantee:
    """Reads a document that finetune can have written; refuses anything else."""
    if not isinstance(document, Mapping):
        raise ConfigError(
            f"Expected a guarantee as a dict, got {type(document).__name__}. Read a file with "
            "sn.load_guarantee(path)."
        )
    version = document.get("version", 1)
    if isinstance(version, bool) or version not in (1, _VERSION):
        raise ConfigError(
            f"Expected a guarantee of version 1 or {_VERSION}, got {version!r}. A newer one needs "
            "a newer shieldnet."
        )
    whole("steps", document["steps"], low=1, high=MAX_STEPS)
    records, delta = document["records"], document["delta"]
    whole("records", records, low=1, high=2**53)
    if not _MIN_DELTA <= fraction("delta", delta) <= 1 / records:
        raise ConfigError(
            f"Expected delta from {_MIN_DELTA:g} to 1 / {records} records, got {delta!r}: finetune "
            "states no other."
        )
    before = document.get("before", [])
    if not isinstance(before, list) or len(before) > _MAX_BEFORE or (before and depth >= 4):
        raise ConfigError(f"Expected at most {_MAX_BEFORE} earlier guarantees, nested 4 deep.")
    made = Guarantee(
        **{name: document[_IN_FILES.get(name, name)] for name in _COUNTED},
        caveats=_lines("caveats", document["caveats"]),
        weights=_hex("weights", document["weights"], 64),
        variation=fraction("variation", document.get("variation", 0.0)),
        run=_hex("run", document.get("run", ""), 32),
        start=_hex("start", document.get("start", ""), 64),
        premises=_lines("premises", document.get("premises", [UNSTATED])),
        scope=document.get("scope", "steps"),
        before=tuple(_read(earlier, depth + 1) for earlier in before),
    )
    if made.scope == "weights" and not (made.premises and made.run):
        raise ConfigError("Expected a guarantee of weights to name its run and its premises.")
    return made


def _lines(name: str, value: object) -> tuple[str, ...]:
    is_list = isinstance(value, list) and len(value) <= _MAX_LINES
    if not (is_list and all(isinstance(line, str) and len(line) <= _MAX_LENGTH for line in value)):  # type: ignore[attr-defined]  # a list
        raise ConfigError(
            f"Expected {name} as at most {_MAX_LINES} texts of at most {_MAX_LENGTH} characters."
        )
    return tuple(value)  # type: ignore[arg-type]  # checked


def _hex(name: str, value: object, length: int) -> str:
    digits = set("0123456789abcdef")
    is_hex = isinstance(value, str) and len(value) in (0, length) and set(value) <= digits
    if not is_hex:
        raise ConfigError(
            f"Expected {name} as {length} hexadecimal digits, got {str(value)[:80]!r}."
        )
    return str(value)


def _mu_of(epsilons: NDArray[np.float64], deltas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns, for every point of a curve, mu of the Gaussian mechanism that passes through it.

    Source: Balle and Wang 2018, Theorem 8, solved by bisection.
    """
    from scipy.special import log_ndtr, ndtr

    low, high = np.zeros_like(deltas), np.full_like(deltas, 1e4)
    for _ in range(80):
        mu = (low + high) / 2
        far = np.exp(epsilons + log_ndtr(-mu / 2 - epsilons / mu))
        enough = ndtr(mu / 2 - epsilons / mu) - far >= deltas
        low, high = np.where(enough, low, mu), np.where(enough, mu, high)
    return high
