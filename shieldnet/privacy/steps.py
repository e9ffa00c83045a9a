"""Noisy sums that private training took, and how many of them are counted."""

from collections.abc import Sequence
from dataclasses import dataclass

from shieldnet.core.errors import ConfigError

MAX_STEPS = 10**7
MAX_LOSS = 2e4


@dataclass(frozen=True)
class Steps:
    """Names noisy sums of one kind.

    noise: deviation, in what one record moves a sum by. rate: the chance of a record to be drawn.
    """

    noise: float
    rate: float
    count: int

    @property
    def mean_loss(self) -> float:
        """Returns about what all steps lose on average."""
        return self.count * self.rate / (2 * self.noise**2)


def require_countable(steps: Sequence[Steps]) -> None:
    """Raises ConfigError where epsilon would promise nothing, or takes too many steps to count."""
    count = sum(step.count for step in steps)
    if count > MAX_STEPS:
        raise ConfigError(f"Expected at most {MAX_STEPS} steps in all, got {count}.")
    if not sum(step.mean_loss for step in steps) <= MAX_LOSS:
        raise ConfigError(
            f"Epsilon would be in the thousands and promise nothing: {count} steps with noise "
            f"{min(step.noise for step in steps):g}. Take more noise, or fewer steps."
        )
