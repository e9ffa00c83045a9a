"""The noisy sum on a grid: what is added up, cut and hidden, with every rounding counted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet.core.errors import ConfigError
from shieldnet.core.randomness import VARIATION, lattice_gaussian, lattice_levels

_ROUNDING = 2.0**-6  # of the clip norm: the most that cutting a sum to the grid may add
_SMOOTHING = 3.0  # steps: a discrete Gaussian is what rounding at random leaves of a Gaussian
_MAX_SUM = 2.0**52  # steps that float64 counts exactly


@dataclass(frozen=True)
class Lattice:
    """Says on what grid a sum of clipped gradients is released, and how far noise spreads.

    step: of the grid, a power of two. deviation: of the noise, in steps. sensitivity: bounds what
    one record moves the sum on the grid, in the clip norm's unit: the clip norm, twice the error of
    adding up in float64, and the cut of every number to the grid. numbers: of a sum.
    Guarantee: releasing the sum is at least as private as a Gaussian mechanism whose noise is
    ``noise`` times the sensitivity, but for ``variation`` in each step.
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

        records: of the training data, all of which may be in one sum. error: bounds the distance
        between a sum as float64 adds it up and the true one, in clip norms.
        Errors: ConfigError where float64 cannot hold such a sum.
        """
        exact = clip * (1 + 2 * error)
        step = 2.0 ** math.floor(math.log2(_ROUNDING * clip / math.sqrt(numbers)))
        while True:
            sensitivity = exact + step * math.sqrt(numbers)
            # Rounded up: what floats lose is less.
            deviation = math.hypot(noise * sensitivity / step, _SMOOTHING) * (1 + 2.0**-45)
            if _is_drawn(deviation):
                break
            step /= 2
        if records * clip / step + 20 * deviation > _MAX_SUM:
            raise ConfigError(
                f"A sum of {records} gradients of {numbers} numbers with noise {noise:g} does not "
                "fit into float64 on a grid that is fine enough. Take less noise, or fewer records."
            )
        return cls(step, deviation, sensitivity, numbers)

    @property
    def variation(self) -> float:
        """Bounds the total variation of one sum's noise to the law that the proof is about."""
        return self.numbers * VARIATION

    def released(self, sums: Sequence[Tensor]) -> list[Tensor]:
        """Cuts sums to the grid and adds noise. Shapes: float64 of any -> the same."""
        flat = torch.cat([total.flatten() for total in sums])
        noisy = flat.div_(self.step).round_()
        noisy += lattice_gaussian(len(flat), self.deviation).to(flat.device)
        noisy *= self.step
        released = noisy.split([total.numel() for total in sums])
        return [
            noisy_sum.view(total.shape) for noisy_sum, total in zip(released, sums, strict=True)
        ]


def _is_drawn(deviation: float) -> bool:
    try:
        lattice_levels(deviation)
    except ConfigError:
        return False
    return True
