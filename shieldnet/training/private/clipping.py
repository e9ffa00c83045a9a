"""Clipping: one norm for all steps, or one that adapts to the data."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from shieldnet.core.checks import fraction, positive
from shieldnet.core.errors import ConfigError

_MIN_NORM, _MAX_NORM = 1e-30, 1e30
_STEADY = 10  # the noise of the counted share is at most a tenth of its range
_MAX_SHARE = 0.5  # of a record's length that is used for counting, at most


class Clip(ABC):
    """Defines what a record adds to a step's sum: a vector of length at most ``unit``.

    A record adds its gradient, clipped to the norm of that step and multiplied by ``scale``, and
    ``numbers`` further values. Norms are chosen from earlier releases, at no privacy cost.
    noise: standard deviation, as a multiple of the most that one record moves a sum. size: average
    number of records per step, public.
    """

    numbers: ClassVar[int] = 0

    @property
    @abstractmethod
    def start(self) -> float:
        """Returns the norm of the first step."""

    @property
    @abstractmethod
    def unit(self) -> float:
        """Bounds the length of what one record adds."""

    def scale(self, norm: float, noise: float, size: float) -> float:
        """Returns the factor on clipped gradients before they are released."""
        return 1.0

    def counted(self, within: Tensor, drawn: int, noise: float, size: float) -> list[Tensor]:
        """Returns the sum of what the drawn records add besides their gradients.

        within: how many of them have a gradient within the norm; near the norm, a fraction counts.
        Shapes: -> (numbers,) float64, or an empty list if there are none.
        """
        return []

    def next(self, norm: float, seen: Tensor, noise: float, size: float) -> float:
        """Returns the norm of the next step, computed from released values only.

        seen: the released value of ``counted``, with noise. Shapes: (numbers,).
        """
        return norm


@dataclass(frozen=True)
class FixedClip(Clip):
    """Clips to the same L2 norm in all steps. norm: the norm, from 1e-30 to 1e30."""

    norm: float = 1.0

    def __post_init__(self) -> None:
        _require_norm("max_grad_norm", self.norm)

    @property
    def start(self) -> float:
        return self.norm

    @property
    def unit(self) -> float:
        return self.norm


@dataclass(frozen=True)
class AdaptiveClip(Clip):
    """Adapts the clip norm in every step to a quantile of the gradient norms.

    Besides its gradient, every record adds +b if the gradient is shorter than the norm, else -b;
    within a tenth of the norm the value is interpolated, so that rounding cannot flip it. It is one
    more coordinate of the same noisy sum: the gradient is scaled by a, with a^2 + b^2 = 1, so that
    the step is the same Gaussian mechanism and epsilon does not grow. b is the smallest value that
    keeps the noise of the counted share at a tenth.

    quantile: target share, in (0, 1), of gradients shorter than the norm. pace: rate of the norm's
    geometric updates. start: norm of the first step; choose it rather too small than too large,
    since a large one drowns the weights in noise before it shrinks.
    Source: Andrew, Thakkar, McMahan, Ramaswamy 2021 (arXiv:1905.03871), Algorithm 1; here gradient
    and count share one noise.
    """

    quantile: float = 0.5
    pace: float = 0.2
    start: float = 1.0
    unit: ClassVar[float] = 1.0
    numbers: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 < fraction("quantile", self.quantile) < 1:
            raise ConfigError(f"Expected quantile above 0 and below 1, got {self.quantile!r}.")
        positive("pace", self.pace)
        _require_norm("start", self.start)

    def scale(self, norm: float, noise: float, size: float) -> float:
        # Rounded down, so that a record with its count has a length of at most 1.
        return math.sqrt(1 - _share(noise, size) ** 2) * (1 - 2.0**-40) / norm

    def counted(self, within: Tensor, drawn: int, noise: float, size: float) -> list[Tensor]:
        return [_share(noise, size) * (2 * within.double() - drawn).reshape(1)]

    def next(self, norm: float, seen: Tensor, noise: float, size: float) -> float:
        shorter = (float(seen) / _share(noise, size) + size) / (2 * size)
        error = min(1.0, max(0.0, shorter)) - self.quantile
        return min(_MAX_NORM, max(_MIN_NORM, norm * math.exp(-self.pace * error)))


def _share(noise: float, size: float) -> float:
    """Returns b, the value that every record adds to or subtracts from the count."""
    return min(_MAX_SHARE, _STEADY * noise / size)


def _require_norm(name: str, norm: float) -> None:
    if not _MIN_NORM <= positive(name, norm) <= _MAX_NORM:
        raise ConfigError(f"Expected {name} from 1e-30 to 1e30, got {norm!r}.")


def as_clip(clip: float | Clip) -> Clip:
    """Returns a Clip; a number becomes a fixed norm."""
    return clip if isinstance(clip, Clip) else FixedClip(clip)
