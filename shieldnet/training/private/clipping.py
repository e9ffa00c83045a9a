"""How long a record's gradient may be: one norm for all steps, or one that follows the data."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from shieldnet.core.checks import fraction, positive
from shieldnet.core.errors import ConfigError

_MIN_NORM, _MAX_NORM = 1e-30, 1e30
_STEADY = 10  # the noise of the counted share is a tenth of its range, at most
_MAX_SHARE = 0.5  # of what a record may move, that goes into counting


class Clip(ABC):
    """Says what a record may add to a step's sum, so that all it adds is at most ``unit`` long.

    A record adds its gradient, clipped to the norm of that step and multiplied by ``scale``, and
    ``numbers`` of its own. Norms are chosen from what was released before, which costs nothing.
    noise: deviation, in what one record moves a sum by. size: of a step, on average; public.
    """

    numbers: ClassVar[int] = 0

    @property
    @abstractmethod
    def start(self) -> float:
        """Returns the norm of the first step."""

    @property
    @abstractmethod
    def unit(self) -> float:
        """Bounds the length of all that one record adds."""

    def scale(self, norm: float, noise: float, size: float) -> float:
        """Returns what clipped gradients are multiplied by before they are released."""
        return 1.0

    def counted(self, within: Tensor, drawn: int, noise: float, size: float) -> list[Tensor]:
        """Returns the sum of what the drawn records add beside their gradients.

        within: how many of them have a gradient no longer than the norm, in parts about it.
        Shapes: -> (numbers,) float64, or nothing where there are none.
        """
        return []

    def next(self, norm: float, seen: Tensor, noise: float, size: float) -> float:
        """Returns the norm of the next step, of what was released and of nothing else.

        seen: what was released of ``counted``, with noise. Shapes: (numbers,).
        """
        return norm


@dataclass(frozen=True)
class FixedClip(Clip):
    """Clips to the same L2 norm in all steps. norm: from 1e-30 to 1e30."""

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
    """Clips to about the norm that a share of the gradients keeps, which each step tells anew.

    Every record says, beside its gradient, whether that is shorter than the norm: +b, -b, or in
    between within a tenth of the norm, so that no last digit flips it. It is one more number of the
    same noisy sum: the gradient is released as a share a of the norm, with a^2 + b^2 = 1, so that
    the step is the same Gaussian mechanism and nothing is added to epsilon. b is as small as keeps
    the noise of the counted share at a tenth.

    quantile: the share of gradients that are to be shorter. pace: of the norm's change, geometric.
    start: the norm of the first step; rather too short than too long, which drowns the weights in
    noise before it shrinks.
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
        # Rounded down: together with its count a record is no longer than 1.
        return math.sqrt(1 - _share(noise, size) ** 2) * (1 - 2.0**-40) / norm

    def counted(self, within: Tensor, drawn: int, noise: float, size: float) -> list[Tensor]:
        return [_share(noise, size) * (2 * within.double() - drawn).reshape(1)]

    def next(self, norm: float, seen: Tensor, noise: float, size: float) -> float:
        shorter = (float(seen) / _share(noise, size) + size) / (2 * size)
        moved = norm * math.exp(-self.pace * (min(1.0, max(0.0, shorter)) - self.quantile))
        return min(_MAX_NORM, max(_MIN_NORM, moved))


def _share(noise: float, size: float) -> float:
    """Returns b, what every record adds to the count or takes from it."""
    return min(_MAX_SHARE, _STEADY * noise / size)


def _require_norm(name: str, norm: float) -> None:
    if not _MIN_NORM <= positive(name, norm) <= _MAX_NORM:
        raise ConfigError(f"Expected {name} from 1e-30 to 1e30, got {norm!r}.")


def as_clip(clip: float | Clip) -> Clip:
    """Returns a clip: a number is one norm for all steps."""
    return clip if isinstance(clip, Clip) else FixedClip(clip)
