"""Gaussian and Laplace noise on a grid, with a proven privacy cost."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shieldnet.core.checks import flag, positive
from shieldnet.core.errors import ConfigError
from shieldnet.core.randomness import (
    MAX_LAPLACE_STEPS,
    MAX_STEPS,
    rounded_gaussian,
    rounded_laplace,
)
from shieldnet.defenses.base import UNBOUNDED, Defense
from shieldnet.outputs.layout import Kind, require_finite
from shieldnet.privacy.cost import PrivacyCost, Reach, gaussian_cost, laplace_cost

_MAX_STEPS = 2.0**62  # steps that an integer holds


@dataclass(frozen=True)
class _Lattice(Defense):
    """Truncates every number to a grid and adds a random whole number of steps.

    Truncation toward zero cannot increase a norm, and a range is counted after it. As the number is
    on the grid, number plus rounded noise is exactly the rounding of number plus noise, so a proof
    for real noise holds for the floats released; ordinary float noise breaks the same proof.
    Source: Mironov 2012.
    """

    scale: float
    step: float | None = None
    constant_time: bool = False
    integers: bool = False
    accepts = ("logits", "values", "embeddings")
    keeps_argmax = False
    deterministic = False
    may_overflow = True
    keeps_nan = True
    max_steps: ClassVar[int] = MAX_STEPS

    def __post_init__(self) -> None:
        scale = positive("scale", self.scale)
        flag("constant_time", self.constant_time)
        flag("integers", self.integers)
        if self.step is None:
            object.__setattr__(self, "step", 2.0 ** math.floor(math.log2(scale / 32)))
        step = positive("step", self.step)
        if math.frexp(step)[0] != 0.5 or step < scale / self.max_steps:
            raise ConfigError(
                f"Expected step to be a power of two >= scale/{self.max_steps}, got "
                f"step={self.step!r} with scale={self.scale!r}."
            )

    @property
    def gives_integers(self) -> bool:
        return self.integers

    @property
    def grid(self) -> float:
        return self.step or math.nan  # __post_init__ has set it

    def given(self, kind: Kind) -> Kind:
        return "integers" if self.integers else kind

    def __call__(self, answers: Tensor) -> Tensor:
        return self.with_noise(answers, self.draw(answers.shape).to(answers.device))

    def draw(self, shape: torch.Size) -> Tensor:
        """Draws whole steps. Shapes: -> ``shape`` int64."""
        return self._noise(shape, self.scale / self.grid)

    def with_noise(self, answers: Tensor, noise: Tensor) -> Tensor:
        grid = self.grid
        # A power of two scales without rounding, so this is exact up to 2^24 steps in float32;
        # beyond, the sum is rounded after the noise, which gives nothing away.
        steps = answers.div(grid).trunc_().add_(noise)
        if not self.integers:
            return steps.mul_(grid)
        held = torch.where(steps.abs() < _MAX_STEPS, steps, torch.inf)
        return require_finite(held, self).to(torch.int64)

    def _noise(self, shape: torch.Size, scale: float) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class GaussianNoise(_Lattice):
    """Adds Gaussian noise of standard deviation ``scale`` to every number, on a grid of ``step``.

    scale: in the unit of the answers, above 0; no default. step: of the grid, a power of two of at
        least scale/1024, by default the largest one up to scale/32. constant_time: whether to draw
        without branches or memory accesses that depend on the noise, default False. integers:
        whether to release whole steps (int64) instead of multiples of ``step``, default False.
    Guarantee: after a clip to a ball of radius C, a row is (2C/scale)-GDP for any two inputs, up to
        a total variation of 5e-32 per number; without a clip the cost is infinite.
    NOT promised: the same cost for repeated queries: averages remove fresh noise, and mu grows with
        sqrt(queries). Charge every answer to a ledger.
    Errors: ConfigError for other settings.
    Source: Dong, Roth, Su 2022; proof in docs/certificate.md.
    """

    @classmethod
    def examples(cls) -> tuple[Defense, ...]:
        return (cls(2.0), cls(2.0, integers=True, constant_time=True))

    @property
    def noise_deviation(self) -> float:
        return self.scale

    def _noise(self, shape: torch.Size, scale: float) -> Tensor:
        return rounded_gaussian(shape, scale, self.constant_time)

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        return gaussian_cost(classes, upstream.on_grid(self.grid), self.scale)


@dataclass(frozen=True)
class LaplaceNoise(_Lattice):
    """Adds Laplace noise of ``scale`` to every number, on a grid of ``step``.

    scale: in the unit of the answers, above 0; no default. step: of the grid, a power of two of at
        least scale/64, by default the largest one up to scale/32. constant_time, integers: as in
        ``GaussianNoise``.
    Guarantee: after a clip whose rows lie within L1 distance D of a center, a row is
        (2D/scale, 0)-differentially private for any two inputs, up to a total variation of 1e-37
        per number. A ball of radius C has D = C sqrt(classes); a range has half its width times
        the numbers of a row.
    NOT promised: the same cost for repeated queries: their epsilons add up.
    Errors: ConfigError for other settings.
    Source: Dwork, McSherry, Nissim, Smith 2006; proof in docs/certificate.md.
    """

    max_steps = MAX_LAPLACE_STEPS

    @classmethod
    def examples(cls) -> tuple[Defense, ...]:
        return (cls(2.0),)

    @property
    def noise_deviation(self) -> float:
        return self.scale * math.sqrt(2)

    def _noise(self, shape: torch.Size, scale: float) -> Tensor:
        return rounded_laplace(shape, scale, self.constant_time)

    def cost(self, classes: int, upstream: Reach = UNBOUNDED) -> PrivacyCost:
        return laplace_cost(classes, upstream.on_grid(self.grid), self.scale)
