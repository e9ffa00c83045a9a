"""Differentially private training: how much noise, and how gradients are clipped."""

from dataclasses import dataclass
from typing import ClassVar

from shieldnet.core.checks import choice, fraction, positive, renamed, whole
from shieldnet.core.errors import ConfigError
from shieldnet.privacy.calibration import calibrate_noise
from shieldnet.privacy.steps import Steps
from shieldnet.training.countermeasures.base import Countermeasure
from shieldnet.training.private.clipping import Clip, as_clip
from shieldnet.training.private.sampling import PoissonSampling, Sampler

MODES = ("certified", "empirical")
_MIN_DELTA = 1e-12


@renamed(
    noise="noise_multiplier",
    clip="max_grad_norm",
    views="augmentations",
    max_physical_batch="max_physical_batch_size",
)
@dataclass(frozen=True)
class DPSGD(Countermeasure):
    """Clips what each record asks of the weights, and adds noise to the sum (DP-SGD).

    epsilon, delta: the target; noise follows from it and from the number of steps.
    noise_multiplier: instead of epsilon, the noise's deviation as a multiple of the clip norm.
    max_grad_norm: the L2 norm that a record's gradient is clipped to, from 1e-30 to 1e30, or
    ``AdaptiveClip`` for one that follows the data.
    mode: ``certified`` states a guarantee and refuses whatever would break it; ``empirical`` is for
    noise too small for any, trains what preflight would refuse, and never states an epsilon.
    augmentations: augmented copies of each record whose
    gradients are averaged before they are clipped (De et al. 2022). ema: the decay of a running
    mean of the weights, which is released in their place; it costs no privacy.
    max_physical_batch_size: records whose gradients are in memory at once; by default 256, or fewer
    where their gradients (activations not counted) would take more than a quarter of a gigabyte.
    sampler: which records a step draws: ``PoissonSampling()``, or ``AllRecords()``.
    canaries: that audit the run itself: gradients of their own, along weights that no model reads,
    planted by a fair Bernoulli draw each; how many are found bounds epsilon from below.

    Guarantee: of the trained model, by ``Guarantee``: of the sampler's event and the noise, which
    both draw from the operating system. Each record's gradient is computed by a graph that sees
    that record alone, and the noisy sum is released on a grid, with every rounding counted: it
    holds for floats, of any type of the model's.
    Source: Abadi et al. 2016 (arXiv:1607.00133).
    """

    epsilon: float | None = None
    delta: float | None = None
    noise_multiplier: float | None = None
    max_grad_norm: float | Clip = 1.0
    mode: str = "certified"
    augmentations: int = 1
    ema: float = 0.0
    max_physical_batch_size: int | None = None
    canaries: int = 0
    sampler: Sampler = PoissonSampling()  # noqa: RUF009 - a frozen value

    private: ClassVar[bool] = True
    keeps_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        choice("mode", self.mode, MODES)
        as_clip(self.max_grad_norm)
        whole("augmentations", self.augmentations, low=1)
        whole("canaries", self.canaries, low=0)
        if not 0 <= fraction("ema", self.ema) < 1:
            raise ConfigError(f"Expected ema from 0 to below 1, got {self.ema!r}.")
        if self.max_physical_batch_size is not None:
            whole("max_physical_batch_size", self.max_physical_batch_size, low=1)
        if not isinstance(self.sampler, Sampler):
            raise ConfigError(f"Expected a sampler such as sn.AllRecords(), got {self.sampler!r}.")
        if self.noise_multiplier is not None:
            positive("noise_multiplier", self.noise_multiplier)
        if self.mode == "empirical":
            if self.noise_multiplier is None or self.epsilon is not None or self.delta is not None:
                raise ConfigError(
                    "An empirical training takes noise_multiplier, and neither epsilon nor delta: "
                    "it states no guarantee."
                )
            return
        if self.epsilon is not None:
            positive("epsilon", self.epsilon)
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ConfigError("Expected either epsilon or noise_multiplier, and delta.")
        if self.delta is None:
            raise ConfigError(
                "Expected delta beside the noise, got none: the chance that the bound of epsilon "
                "does not hold. Take one well below 1 / records, such as delta=1e-5 for 10,000."
            )
        if not _MIN_DELTA <= fraction("delta", self.delta) < 1:
            raise ConfigError(f"Expected delta from {_MIN_DELTA:g} to below 1, got {self.delta!r}.")
        if self.canaries and self.canaries < 20:
            raise ConfigError(f"Expected at least 20 canaries, got {self.canaries}.")

    @property
    def clipping(self) -> Clip:
        """Returns how gradients are clipped."""
        return as_clip(self.max_grad_norm)

    @property
    def is_certified(self) -> bool:
        """Says whether a guarantee is stated."""
        return self.mode == "certified"

    def event(self, rate: float, steps: int) -> Steps:
        """Returns the noisy sums of so many steps, with the noise that keeps to epsilon.

        rate: the share of the records that a step draws, on average.
        Errors: ConfigError where nothing is proven of the sampler, or no noise keeps to epsilon.
        """
        noise = self.noise_multiplier
        if noise is None:
            of_unit_noise = self._event(1.0, rate, steps)
            epsilon, delta = float(self.epsilon or 0), float(self.delta or 0)
            noise = calibrate_noise(epsilon, delta, of_unit_noise.rate, steps)
            event = self._event(float(noise), rate, steps)
            if event.rate != of_unit_noise.rate:
                raise ConfigError(
                    f"Expected the event of {self.sampler!r} to have one rate whatever the noise, "
                    f"got {of_unit_noise.rate:g} and {event.rate:g}."
                )
            return event
        return self._event(float(noise), rate, steps)

    def _event(self, noise: float, rate: float, steps: int) -> Steps:
        event = self.sampler.event(noise, rate, steps)
        if event is None:
            raise ConfigError(
                f"Nothing is proven of {self.sampler!r}, so no epsilon can be stated. Take "
                "PoissonSampling() or AllRecords(), give the sampler an event, or take "
                "mode='empirical', which states no guarantee."
            )
        if not isinstance(event, Steps) or (event.noise, event.count) != (noise, steps):
            raise ConfigError(
                f"Expected the event of {self.sampler!r} as {steps} Steps with noise {noise:g}, as "
                f"they are taken, got {event!r}."
            )
        if event.rate < rate * (1 - 1e-12):
            raise ConfigError(
                f"Expected the event of {self.sampler!r} with a rate of {rate:g} at least, which "
                f"is what a step draws on average, got {event.rate:g}: some record is drawn more "
                "often than that."
            )
        return event
