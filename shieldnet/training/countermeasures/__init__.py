"""Countermeasures in training. These are heuristics: none of them has a guarantee."""

from shieldnet.training.countermeasures.base import (
    Adversarial,
    Augment,
    Countermeasure,
    LabelSmoothing,
    WeightDecay,
)
from shieldnet.training.countermeasures.class_inversion import (
    MID,
    AntiAdversarial,
    BiDO,
    TransferFreeze,
)

__all__ = [
    "MID",
    "Adversarial",
    "AntiAdversarial",
    "Augment",
    "BiDO",
    "Countermeasure",
    "LabelSmoothing",
    "TransferFreeze",
    "WeightDecay",
]
