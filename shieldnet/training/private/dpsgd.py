"""DP-SGD: the settings of differentially private training."""

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
    """Clips each record's gradient and adds noise to their sum (DP-SGD).

    epsilon, delta: the target; the noise follows from it and the number of steps.
    noise_multiplier: instead of epsilon, the noise's standard deviation as a multiple of the clip
    norm. max_grad_norm: the L2 norm to which a record's gradient is clipped, from 1e-30 to 1e30, or
    an ``AdaptiveClip``.
    mode: ``certified`` states a guarantee and refuses whatever would break it; ``empirical`` is for
    noise too small for a guarantee: it skips the refusals of preflight and never states an epsilon.
    augmentations: number of augmented copies of each record, whose gradients are averaged before
    clipping (De et al. 2022). ema: decay, in [0, 1), of a running mean of the weights, which is
    released instead of them at no privacy cost.
    max_physical_batch_size: records whose gradients are in memory at once; by default 256, or fewer
    if their gradients (without activations) would take more than 256 MiB.
    sampler: the records that a step draws: ``PoissonSampling()`` or ``AllRecords()``.
    canaries: number of canaries that audit the run, 0 or at least 20: artificial gradients along
    weights that no model reads, each planted with probability 1/2. How many are identified gives a
    lower bound on epsilon.

    Guarantee: a ``Guarantee`` of the trained model, from the sampler's event and the noise, which
    both draw from the operating system. A graph that sees one record alone computes its gradient,
    and the noisy sum is released on a grid with every rounding error counted, so that the guarantee
    holds in floating point, for every dtype of the model.
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
                    "mode='empirical' takes noise_multiplier, and neither epsilon nor delta: it "
                    "states no guarantee."
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
        """Returns whether a guarantee is stated."""
        return self.mode == "certified"

    def event(self, rate: float, steps: int) -> Steps:
        """Returns the event of ``steps`` noisy sums, with the noise that meets epsilon.

        rate: the share of records that a step draws, on average.
        Errors: ConfigError if nothing is proven about the sampler, or no noise meets epsilon.
        """
        noise = self.noise_multiplier
        if noise is None:
            of_unit_noise = self._event(1.0, rate, steps)
            epsilon, delta = float(self.epsilon or 0), float(self.delta or 0)
            noise = calibrate_noise(epsilon, delta, of_unit_noise.rate, steps)
            event = self._event(float(noise), rate, steps)
            if event.rate != of_unit_noise.rate:
                raise ConfigError(
                    f"Expected the event of {self.sampler!r} to have the same rate for any noise, "
                    f"got {of_unit_noise.rate:g} and {event.rate:g}."
                )
            return event
        return self._event(float(noise), rate, steps)

    def _event(self, noise: float, rate: float, steps: int) -> Steps:
        event = self.sampler.event(noise, rate, steps)
        if event is None:
            raise ConfigError(
                f"Nothing is proven about {self.sampler!r}, so no epsilon can be stated. Take "
                "PoissonSampling() or AllRecords(), give the sampler an event, or take "
                "mode='empirical', which states no guarantee."
            )
        if not isinstance(event, Steps) or (event.noise, event.count) != (noise, steps):
            raise ConfigError(
                f"Expected the event of {self.sampler!r} to be {steps} Steps with noise {noise:g}, "
                f"got {event!r}."
            )
        if event.rate < rate * (1 - 1e-12):
            raise ConfigError(
                f"Expected the event of {self.sampler!r} to have a rate of at least {rate:g}, the "
                f"average share that a step draws, got {event.rate:g}: some record is drawn more "
                "often than that."
            )
        return event
