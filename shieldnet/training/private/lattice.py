"""Noisy sums on a grid, with every rounding error counted in the sensitivity."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from shieldnet.core.errors import ConfigError
from shieldnet.core.randomness import (
    VARIATION,
    build_lattice_tables,
    lattice_gaussian,
    lattice_levels,
)

_ROUNDING = 2.0**-6  # of the clip norm: the most that rounding a sum to the grid may add
_SMOOTHING = 3.0  # steps: from here a discrete Gaussian equals a randomly rounded Gaussian
_MAX_SUM = 2.0**52  # steps that float64 represents exactly


@dataclass(frozen=True)
class Lattice:
    """Holds the grid on which a sum of clipped gradients is released, and the noise.

    step: of the grid, a power of two. deviation: standard deviation of the noise, in steps.
    sensitivity: bound on how far one record moves the sum on the grid, in units of the clip norm:
    the clip norm, twice the error of a float64 sum, and the rounding of every number to the grid.
    numbers: number of coordinates of a sum.
    Guarantee: releasing the sum is at least as private as a Gaussian mechanism whose noise is
    ``noise`` times the sensitivity, up to a total variation of ``variation`` per step.
    Source: docs/certificate.md, section 7.
    """

    step: float
    deviation: float
    sensitivity: float
    numbers: int

    @classmethod
    def of(
        cls, noise: float, clip: float, *, numbers: int, records: int, error: float
    ) -> "Lattice":
        """Chooses the grid for a noise in clip norms.

        records: number of training records, all of which may be in one sum. error: bound on the
        rounding error of a float64 sum, in clip norms.
        Errors: ConfigError if float64 cannot represent such a sum.
        """
        exact = clip * (1 + 2 * error)
        step = 2.0 ** math.floor(math.log2(_ROUNDING * clip / math.sqrt(numbers)))
        while True:
            sensitivity = exact + step * math.sqrt(numbers)
            # Rounded up by more than the floating-point error.
            deviation = math.hypot(noise * sensitivity / step, _SMOOTHING) * (1 + 2.0**-45)
            if _is_drawn(deviation):
                break
            step /= 2
        if records * clip / step + 20 * deviation > _MAX_SUM:
            raise ConfigError(
                f"A sum of {records} gradients of {numbers} numbers with noise {noise:g} does not "
                "fit into float64 on a sufficiently fine grid. Take less noise, or fewer records."
            )
        return cls(step, deviation, sensitivity, numbers)

    @property
    def variation(self) -> float:
        """Bounds the total variation between one sum's noise and the ideal distribution."""
        return self.numbers * VARIATION

    def prepare(self, tell: Callable[[str], None]) -> None:
        """Builds the tables of the noise; ``tell`` gets a line before the first time."""
        if _tell_of(self.deviation):
            tell("building noise tables (once per process and setting)")
        build_lattice_tables(self.deviation)

    def released(self, sums: Sequence[Tensor]) -> list[Tensor]:
        """Rounds sums to the grid and adds noise. Shapes: any, float64 -> the same."""
        flat = torch.cat([total.flatten() for total in sums])
        noisy = flat.div_(self.step).round_()
        noisy += lattice_gaussian(len(flat), self.deviation).to(flat.device)
        noisy *= self.step
        released = noisy.split([total.numel() for total in sums])
        return [
            noisy_sum.view(total.shape) for noisy_sum, total in zip(released, sums, strict=True)
        ]


def _tell_of(deviation: float) -> bool:
    """Returns whether a deviation is used for the first time, so that its tables are missing."""
    used = _uses(deviation)
    used.append(deviation)
    return len(used) == 1


@lru_cache(maxsize=16)
def _uses(deviation: float) -> list[float]:
    return []


def _is_drawn(deviation: float) -> bool:
    try:
        lattice_levels(deviation)
    except ConfigError:
        return False
    return True
