"""From noise to epsilon and back: what private training proves, counted step by step."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shieldnet._validate import choice, fraction, optional, positive, quietly, unwarned, whole
from shieldnet.errors import ConfigError
from shieldnet.price import Price, rounded_up

_LOSSES = "dp_accounting.pld.privacy_loss_distribution"
SCOPES = ("steps", "weights")
_FINE = 1e-4  # the grid of privacy losses
_MOST_NOISE, _MOST_STEPS, _MOST_LOSS = 1e6, 10**7, 2e4

_TAIL = 1e-10
"""The least delta down to which mu of subsampled steps is stated."""

NOT_COVERED = (
    "whoever reads the training data, the gradients or the noise",
    "what many records say together: each record alone is protected",
    "records that stand in the data more than once: epsilon grows with every copy",
    "choices made by looking at the data before, such as the learning rate",
    "what preflight prints: measured on a few records, without noise",
)
"""Limits that every guarantee prints."""


@dataclass(frozen=True)
class Guarantee:
    """States what a model that was trained privately may tell of any record it was trained on.

    noise: deviation of the noise, as a multiple of the clip norm, so of what one record moves a
    sum. rate: the chance with which a record is drawn, independently, in every step (1: always).
    steps: that were taken. records: of the training data; their number is taken to be public.
    delta: at which ``epsilon`` is stated. caveats: what else limits the claim. weights: the hash of
    the weights that it is about, "" where it is about none yet. variation: bounds the total
    variation between all that was drawn and the ideal law, over all steps and weights; delta counts
    it. run: names the training, made once for each. start: the hash of the weights it began with.
    premises: what the claim takes for granted. scope: ``weights`` where what the start knew is
    stated, else ``steps``: the claim is then of what these steps added, and not of the weights.
    Neighbors: two sets of training data of which one has one record more.

    Guarantee: with rate 1 the Gaussian mechanism, composed exactly. Below it, the privacy losses of
    Poisson-subsampled steps, composed by dp-accounting from above. Proven for real numbers; floats
    come near them.
    Source: Dong, Roth, Su 2022; Doroshenko et al. 2022 (pip: dp-accounting).
    """

    noise: float
    rate: float
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

    def __post_init__(self) -> None:
        positive("noise", self.noise)
        whole("steps", self.steps, low=0)
        whole("records", self.records, low=1)
        if not fraction("rate", self.rate) > 0:
            raise ConfigError(f"Expected a rate above 0, got {self.rate}.")
        if not 0 < fraction("delta", self.delta) < 1:
            raise ConfigError(f"Expected delta above 0 and below 1, got {self.delta}.")
        fraction("variation", self.variation)
        choice("scope", self.scope, SCOPES)

    @cached_property
    def epsilon(self) -> float:
        """Returns epsilon at ``delta``."""
        return self.epsilon_at(self.delta)

    def epsilon_at(self, delta: float) -> float:
        """Returns epsilon at another delta."""
        if self._is_gaussian:
            return self._gaussian.epsilon(delta)
        return float(self._losses.get_epsilon_for_delta(delta))

    def delta_at(self, epsilon: float) -> float:
        """Returns the least delta with (epsilon, delta)-differential privacy."""
        if self._is_gaussian:
            return self._gaussian.delta(epsilon)
        return float(self._losses.get_delta_for_epsilon(epsilon))

    @cached_property
    def mu(self) -> float:
        """Returns mu of Gaussian differential privacy.

        Subsampled steps are not Gaussian: theirs is the least mu that allows whatever they do, down
        to a delta of 1e-10.
        """
        if self._is_gaussian:
            return self._gaussian.mu
        epsilons, deltas = self._curve
        return float(_mu_of(epsilons, deltas).max())

    def distinguish(self, fpr: float) -> float:
        """Bounds any adversary's true-positive rate at ``fpr``: was this record trained on?"""
        rate = fraction("fpr", fpr)
        if self._is_gaussian:
            return self._gaussian.distinguish(rate)
        epsilons, deltas = self._curve
        odds = np.exp(epsilons)
        return float(min(1.0, (odds * rate + deltas).min(), (1 - (1 - deltas - rate) / odds).min()))

    def least_fpr(self, tpr: float) -> float:
        """Bounds any adversary's false-positive rate at a true-positive rate from below."""
        if self._is_gaussian:
            return 1 - self._gaussian.distinguish(min(1.0, 1 - tpr))
        epsilons, deltas = self._curve
        odds = np.exp(epsilons)
        return float(max(0.0, ((tpr - deltas) / odds).max(), (1 - deltas - odds * (1 - tpr)).max()))

    def reconstruction(self, prior: float) -> float:
        """Bounds the chance that any adversary rebuilds a record that it guesses with ``prior``.

        Source: Hayes, Mahloujifar, Balle 2023 (arXiv:2302.07225): success is the true-positive
        rate of a test whose false-positive rate is the prior.
        """
        return self.distinguish(prior)

    def auc(self) -> float:
        """Bounds any adversary's area under the curve, by the mean over false-positive rates."""
        edges = np.linspace(0, 1, 2001)
        # The bound rises with the rate: its right ends lie above the area.
        return float(np.mean([self.distinguish(rate) for rate in edges[1:]]))

    def cross_check(self) -> float:
        """Returns epsilon by Opacus's Renyi accountant: another proof, from further above."""
        accountant = quietly("opacus.accountants").RDPAccountant()
        accountant.history = [(self.noise, self.rate, self.steps)]
        with unwarned("Optimal order is"):  # it is above all the same
            return float(accountant.get_epsilon(self.delta))

    def document(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it: what ``read`` needs, and what people look for."""
        said = {"epsilon": self.epsilon, "mu": self.mu, "words": self.words, "text": str(self)}
        return {**asdict(self), "caveats": list(self.caveats), **said}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Guarantee":
        """Makes the guarantee of a document; epsilon is computed anew, not believed.

        Errors: KeyError, TypeError or ConfigError for what is no such document.
        """
        names = ("noise", "rate", "steps", "records", "delta")
        fields = {name: document[name] for name in names}
        return cls(**fields, caveats=tuple(document["caveats"]), weights=document["weights"])

    @property
    def words(self) -> str:
        """Says epsilon and delta in a few words."""
        return f"epsilon {rounded_up(self.epsilon)} at delta {self.delta:g}"

    def __str__(self) -> str:
        drawn = "all records" if self.rate == 1 else f"each record with chance {self.rate:.4g}"
        return "\n".join(
            [
                f"Guarantee for each of {self.records} training records",
                f"Proven for {self.steps} steps on {drawn}, noise {self.noise:.4g} x clip norm:",
                f"  {self.words}",
                f"  mu      {rounded_up(self.mu)}",
                f"  membership: TPR <= {rounded_up(self.distinguish(0.01))} at 1 % FPR",
                "  reconstruction of a record guessed with chance .001: <= "
                f"{rounded_up(self.reconstruction(0.001))}",
                "Not covered:",
                *(f"  - {limit}" for limit in (*self.caveats, *NOT_COVERED)),
            ]
        )

    @property
    def _is_gaussian(self) -> bool:
        """Says whether the closed form is exact: all records in every step, or no step at all."""
        return self.rate == 1 or self.steps == 0

    @property
    def _gaussian(self) -> Price:
        return Price(mu=math.sqrt(self.steps) / self.noise)

    @cached_property
    def _losses(self) -> Any:
        return _composed(self.noise, self.rate, self.steps, _FINE)

    @cached_property
    def _curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Samples (epsilon, delta) from 0 to where delta is 1e-10."""
        last = float(self._losses.get_epsilon_for_delta(_TAIL))
        epsilons = np.linspace(0.0, last, 200)
        return epsilons, np.asarray(self._losses.get_delta_for_epsilon(epsilons))


@lru_cache(maxsize=256)
def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Returns the noise, as a multiple of the clip norm, that keeps to epsilon at delta.

    Guarantee: the epsilon of what is returned is at most ``epsilon``; it is less by up to .5 %.
    """
    positive("epsilon", epsilon)
    if rate == 1:
        mu = _below(lambda mu: Price(mu=mu).epsilon(delta) <= epsilon, 1e-6)
        return math.sqrt(steps) / mu

    def holds(inverse: float, interval: float) -> bool:
        if not _is_countable(1 / inverse, rate, steps):
            return False
        losses = _composed(1 / inverse, rate, steps, interval)
        return bool(losses.get_epsilon_for_delta(delta) <= epsilon)

    start = _below(lambda inverse: holds(inverse, 10 * _FINE), 5e-4)
    # The finer grid allows a little less noise or, where its rounding is against it, asks for more.
    while not holds(start, _FINE):
        start *= 0.999
    return 1 / start


@lru_cache(maxsize=16)
def _composed(noise: float, rate: float, steps: int, interval: float) -> Any:
    if not _is_countable(noise, rate, steps):
        raise ConfigError(
            f"The epsilon of {steps} steps at noise {noise:g} and rate {rate:g} is not computed: "
            f"it is in the thousands and promises nothing, or beyond {_MOST_STEPS} steps."
        )
    pld = optional(_LOSSES, extra="accounting")
    # A step's own loss is about rate / noise: a grid coarser than that adds up over many steps.
    fine = min(interval, 0.2 * rate / noise)
    one = pld.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=fine, use_connect_dots=True
    )
    return one.self_compose(steps)


def _is_countable(noise: float, rate: float, steps: int) -> bool:
    """Says whether the losses of all steps fit on a grid: their mean is at most this."""
    return (
        noise <= _MOST_NOISE
        and steps <= _MOST_STEPS
        and (steps * rate / (2 * noise * noise) <= _MOST_LOSS)
    )


def _below(holds: Callable[[float], bool], tolerance: float) -> float:
    """Finds, to a relative tolerance and from below, up to where a falling condition holds."""
    low, high = 0.0, 1.0
    while holds(high):
        low, high = high, 2 * high
    while low == 0:
        high /= 2
        low = high if holds(high) else 0.0
        if high < 1e-6:
            raise ConfigError("No noise below a million times the clip norm keeps to this epsilon.")
    high = 2 * low
    while high - low > tolerance * low:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _mu_of(epsilons: NDArray[np.float64], deltas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns, for every point of a curve, the mu of the Gaussian mechanism that goes through it.

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
