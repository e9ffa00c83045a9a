"""The plan of a training, validated completely before any weight is copied."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shieldnet.core.errors import ConfigError
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.training.claims import guarantee_of, known_of_start
from shieldnet.training.compatibility import (
    as_read,
    held_apart,
    require_plain_weights,
)
from shieldnet.training.countermeasures.base import Augment, Countermeasure
from shieldnet.training.distributed import Ranks
from shieldnet.training.identity import Identity, identity_of
from shieldnet.training.losses import Loss, as_loss
from shieldnet.training.objective import Objective
from shieldnet.training.private.dpsgd import DPSGD
from shieldnet.training.private.premise import Premise
from shieldnet.training.records import Records
from shieldnet.training.settings import FinetuneSettings
from shieldnet.training.several_inputs import require_whole_inputs, taking_one
from shieldnet.training.trial import try_once

_BATCH_SIZE = 64


@dataclass(frozen=True)
class Plan:
    """Holds the settings of a training and what follows from them.

    loss: a custom loss. private: the DPSGD countermeasure, if any. size: records per step, on
    average. steps: exact number of steps. claimed: the guarantee of these steps, or None. start:
    what a test of the start on heldout records found, "" without heldout.
    """

    model: nn.Module
    records: Records
    countermeasures: tuple[Countermeasure, ...]
    settings: FinetuneSettings
    loss: Callable[..., Tensor] | None
    private: DPSGD | None
    objective: Objective
    size: int
    steps: int
    claimed: Guarantee | None
    premise: Premise
    start: str

    @classmethod
    def of(
        cls,
        model: nn.Module,
        records: Records,
        countermeasures: tuple[Countermeasure, ...],
        settings: FinetuneSettings,
        loss: Callable[..., Tensor] | None = None,
        start: object = None,
        heldout: object = None,
    ) -> "Plan":
        """Makes and validates a plan. Errors: ConfigError and DataError."""
        private = private_among(countermeasures)
        require_plain_weights(model, private=private is not None)
        premise = Premise.of(model, start)  # of the model as it was given
        records = as_read(model, records)
        if (packing := records.packing) is not None:
            require_whole_inputs(countermeasures)
            model = taking_one(packing, model)
        size = _size(settings, records, private)
        steps = _steps(settings.epochs, len(records), size, exact=private is not None)
        plain = criterion = as_loss(loss, settings.outputs, settings.axis)
        for countermeasure in countermeasures:
            criterion = countermeasure.criterion(criterion)
        try_once(model, records, criterion, private=private is not None)
        claimed = None
        if private is not None:
            rate = size / len(records)
            claimed = guarantee_of(private, rate, steps, len(records), settings.seed)
        known = known_of_start(model, premise, records, heldout, plain, claimed)
        return cls(
            model=model,
            records=records,
            countermeasures=countermeasures,
            settings=settings,
            loss=loss,
            private=private,
            objective=Objective(criterion, countermeasures),
            size=size,
            steps=steps,
            claimed=claimed,
            premise=premise,
            start=known,
        )

    @property
    def plain_loss(self) -> Loss:
        """Returns the loss without countermeasures."""
        return as_loss(self.loss, self.settings.outputs, self.settings.axis)

    def validation_records(self, validation: object) -> Records:
        """Returns validation records; raises DataError if some are also trained on."""
        return held_apart(
            self.model,
            validation,
            self.records,
            "validation",
            self.plain_loss,
            private=self.private is not None,
        )

    @property
    def rate(self) -> float:
        """Returns the probability that a step draws a record."""
        return self.size / len(self.records)

    @property
    def noise(self) -> float:
        """Returns the noise, as a multiple of what one record moves a sum; 0 without DPSGD."""
        source = self.claimed or self.private
        return 0.0 if source is None else float(source.noise_multiplier or 0)

    @property
    def ema(self) -> float:
        """Returns the decay of the running mean of the weights, 0 if there is none."""
        return 0.0 if self.private is None else self.private.ema

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Makes the optimizer for the trained weights of a model."""
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        decay = sum(countermeasure.weight_decay for countermeasure in self.countermeasures)
        return self.settings.optimization(weights, decay)

    def identity(self, ranks: Ranks) -> Identity:
        """Returns everything that the training depends on, by name."""
        derived = {
            "records in a step": str(self.size),
            "steps": str(self.steps),
            "clip norms of noise": repr(self.noise),
            "processes": str(ranks.count),
        }
        return identity_of(
            self.model,
            self.records.fingerprint(),
            self.countermeasures,
            self.settings,
            self.loss,
            self.premise.known,
            derived,
        )


def private_among(countermeasures: Sequence[Countermeasure]) -> DPSGD | None:
    """Returns the DPSGD, if any; raises ConfigError for countermeasures that do not compose."""
    for countermeasure in countermeasures:
        if not isinstance(countermeasure, Countermeasure):
            raise ConfigError(
                "Expected countermeasures such as DPSGD(...) or WeightDecay(...), got "
                f"{countermeasure!r}."
            )
    dpsgds = [measure for measure in countermeasures if isinstance(measure, DPSGD)]
    if len(dpsgds) > 1:
        raise ConfigError("Expected at most one DPSGD.")
    if not dpsgds:
        return None
    (private,) = dpsgds
    mixing = [measure for measure in countermeasures if not measure.private]
    if mixing and private.is_certified:
        raise ConfigError(
            f"{type(mixing[0]).__name__} compares the records of a batch or reads hidden layers, "
            "so it does not compose with DPSGD."
        )
    is_augmented = any(isinstance(measure, Augment) for measure in countermeasures)
    if private.augmentations > 1 and not is_augmented:
        raise ConfigError("augmentations= needs Augment(...): without it all copies are the same.")
    return private


def _size(settings: FinetuneSettings, records: Records, private: DPSGD | None) -> int:
    batch_size = settings.batch_size or records.batch
    if private is None:
        return min(len(records), batch_size or _BATCH_SIZE)
    size: object = private.sampler.size(len(records), batch_size)
    if not (isinstance(size, int) and 1 <= size <= len(records)):
        raise ConfigError(
            f"Expected {private.sampler!r} to draw 1 to {len(records)} records per step, got "
            f"{size!r}."
        )
    return size


def _steps(epochs: float, records: int, size: int, *, exact: bool) -> int:
    """Returns the exact number of steps, whatever the length of a loader.

    exact: batches have ``size`` records on average; otherwise an epoch is a number of whole batches
    of a shuffled order.
    """
    if exact:
        return max(1, math.ceil(epochs * records / size - 1e-9))
    return max(1, round(epochs * -(-records // size)))
