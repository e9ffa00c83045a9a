"""Fresh Gaussian noise on a grid: injection and rounding as one mechanism with a proof."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shieldnet._validate import positive
from shieldnet.defenses.base import UNBOUNDED, Defense
from shieldnet.errors import ConfigError
from shieldnet.price import Price, Reach, gaussian_price
from shieldnet.randomness import MAX_STEPS, rounded_gaussian


@dataclass(frozen=True)
class GaussianNoise(Defense):
    """Adds Gaussian noise of standard deviation ``scale`` to every logit, on a grid of ``step``.

    Each score is cut toward zero to the grid (a norm cannot grow) and gets round(scale/step Z)
    steps, drawn from the operating system's randomness. As the score is on the grid, that is
    exactly a rounded continuous Gaussian, so its guarantee holds for the floats released; ordinary
    float noise breaks the same proof (Mironov 2012).

    step: a power of two; by default the largest one up to scale/8.
    Guarantee: after ``ClipNorm(C)`` one answer is (2C/scale)-GDP between any two worlds, up to a
        total variation of 5e-32 per number; without a clip the price is infinite.
    NOT promised: a bound on repeated queries beyond mu sqrt(queries): fresh noise is averaged
        away, so let a ledger charge every answer.
    """

    scale: float
    step: float | None = None
    accepts = ("logits",)
    gives = "logits"
    keeps_argmax = False
    deterministic = False

    def __post_init__(self) -> None:
        scale = positive("scale", self.scale)
        if self.step is None:
            object.__setattr__(self, "step", 2.0 ** math.floor(math.log2(scale / 8)))
        step = positive("step", self.step)
        if math.frexp(step)[0] != 0.5 or step < scale / MAX_STEPS:
            raise ConfigError(
                f"Expected step to be a power of two >= scale/{MAX_STEPS}, got step={self.step!r} "
                f"with scale={self.scale!r}."
            )

    def __call__(self, answers: Tensor) -> Tensor:
        grid = self.step or math.nan  # __post_init__ has set it
        steps = (answers.to(torch.float64) / grid).trunc()
        noise = rounded_gaussian(answers.shape, self.scale / grid)
        return ((steps + noise.to(answers.device)) * grid).to(answers.dtype)

    def price(self, classes: int, upstream: Reach = UNBOUNDED) -> Price:
        return gaussian_price(classes, upstream.radius, self.scale)
