"""Noisy sums of private training, as the accountant sees them."""

from collections.abc import Sequence
from dataclasses import dataclass

from shieldnet.core.errors import ConfigError

MAX_STEPS = 10**7
MAX_LOSS = 2e4


@dataclass(frozen=True)
class Steps:
    """Describes ``count`` noisy sums of one kind.

    noise: standard deviation, as a multiple of the most that one record moves a sum. rate: the
    probability that a record is drawn.
    """

    noise: float
    rate: float
    count: int

    @property
    def mean_loss(self) -> float:
        """Returns an approximate mean privacy loss of all steps."""
        return self.count * self.rate / (2 * self.noise**2)


def require_countable(steps: Sequence[Steps]) -> None:
    """Raises ConfigError if epsilon would be meaningless, or there are too many steps."""
    count = sum(step.count for step in steps)
    if count > MAX_STEPS:
        raise ConfigError(f"Expected at most {MAX_STEPS} steps in all, got {count}.")
    if not sum(step.mean_loss for step in steps) <= MAX_LOSS:
        raise ConfigError(
            f"Epsilon would be in the thousands and guarantee nothing: {count} steps with noise "
            f"{min(step.noise for step in steps):g}. Take more noise, or fewer steps."
        )
