"""Upper bounds that are proven, in words and numbers, and what they do not cover."""

import math
from dataclasses import dataclass

from shieldnet.core.checks import whole
from shieldnet.privacy.cost import PrivacyCost, rounded_up

NOT_COVERED = (
    "whoever holds the weights or the unshielded model",
    "membership, sex, a diagnosis: whatever an adversary guesses with a chance of 2^-bits or more",
    "callers who pool their answers: add up the queries of all of them",
    "timing, refusals and other side channels",
)
"""Limits that every certificate prints."""

LAYOUT = "the layout of what has positions: shapes in a segmentation, the order of a text"
"""The limit of answers with positions: their bits count symbols, and say nothing of shapes."""

_PURE = "(epsilon, 0)-differential privacy between any two inputs"


@dataclass(frozen=True)
class Certificate:
    """States what ``queries`` answers of a shield may give away at most, to any adversary.

    shield: the chain of defenses in words. classes: of a row. cost: of one answer. positions:
    rows of one answer, such as the pixels of a segmentation. size: of a row in words, where it
    is no number of classes. unbounded: why the bounds are infinite, if not for the defenses.
    The bounds hold for every prior, attack and strategy of asking; they are proven, not measured.
    """

    shield: str
    classes: int
    cost: PrivacyCost
    queries: int = 1
    positions: int = 1
    size: str = ""
    unbounded: str = ""

    def __post_init__(self) -> None:
        whole("classes", self.classes, low=1)
        whole("positions", self.positions, low=1)
        whole("queries", self.queries, low=1)

    @property
    def total(self) -> PrivacyCost:
        """Adds up the privacy costs of all queries."""
        return self.cost * self.queries

    @property
    def bits(self) -> float:
        """Returns the maximal leakage of all queries, in bits."""
        return self.total.bits

    @property
    def pure(self) -> float:
        """Returns epsilon of the (epsilon, 0)-differential privacy of all queries."""
        return self.total.pure

    @property
    def mu(self) -> float:
        """Returns the Gaussian differential privacy of all queries."""
        return self.total.mu

    def reconstruction(self, prior: float) -> float:
        """Bounds the chance that any adversary reconstructs an input it guesses with ``prior``."""
        return self.total.reconstruction(prior)

    def distinguish(self, fpr: float) -> float:
        """Bounds any adversary's true-positive rate at ``fpr`` between two given inputs."""
        return self.total.distinguish(fpr)

    def epsilon(self, delta: float) -> float:
        """Returns epsilon of the (epsilon, delta)-differential privacy between any two inputs."""
        return self.total.epsilon(delta)

    def __str__(self) -> str:
        answers = "one answer" if self.queries == 1 else f"{self.queries} answers"
        width = self.size or (
            counted(self.classes, "classes") if self.classes > 1 else "one number"
        )
        size = width if self.positions == 1 else f"{width} at {self.positions} positions"
        limits = NOT_COVERED if self.positions == 1 else (*NOT_COVERED, LAYOUT)
        pure = self.pure
        return "\n".join(
            [
                f"Certificate for {self.shield}",
                f"Proven for {answers} over {size}:",
                f"  bits {_number(self.bits)}: P[reconstruction] <= {self._bits_bound()}",
                f"  mu   {_number(self.mu)}: {self._mu_bound()}",
                *([] if math.isinf(pure) else [f"  epsilon {_number(pure)}: {_PURE}"]),
                "Not covered:",
                *(f"  - {limit}" for limit in limits),
            ]
        )

    def _bits_bound(self) -> str:
        if math.isinf(self.bits):
            reason = "some stage must have countable answers, or clip and add noise"
            return f"1 (no bound: {self.unbounded or reason})"
        shown = rounded_up(self.bits)
        return f"prior x 2^{shown}; no bound for a prior above 2^-{shown}"

    def _mu_bound(self) -> str:
        if math.isinf(self.mu):
            reason = "" if self.unbounded else " (no clip followed by noise)"
            return f"no differential privacy of the input{reason}"
        shown = rounded_up(self.mu)
        return f"{shown}-GDP between any two inputs: TPR <= Phi(Phi^-1(FPR) + {shown})"


def counted(count: int, unit: str) -> str:
    """Writes a number of classes, values or dimensions: 1 class, 8 dimensions."""
    single = {"classes": "class"}.get(unit, unit.removesuffix("s"))
    return f"{count} {single if count == 1 else unit}"


def _number(value: float) -> str:
    return "infinite" if math.isinf(value) else rounded_up(value)
