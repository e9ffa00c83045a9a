"""What adversaries do, one idea a file."""

from shieldnet.attacks.attribute import AttributeInference, AttributeRecovery
from shieldnet.attacks.averaging import Averaging
from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.class_inversion import ClassInversion
from shieldnet.attacks.denoising import JitterAveraging, TableLearning
from shieldnet.attacks.extraction import Extraction
from shieldnet.attacks.inversion import Inversion, Reidentification
from shieldnet.attacks.membership import Membership
from shieldnet.attacks.one_run import OneRun
from shieldnet.attacks.straight_through import StraightThrough

ATTACKS: tuple[type[Attack], ...] = (
    *(Inversion, StraightThrough, Reidentification),
    *(Membership, Averaging, OneRun),
    *(AttributeRecovery, AttributeInference),
    *(Extraction, ClassInversion),
    *(JitterAveraging, TableLearning),
)
"""All of them, in the order in which a report is read."""

__all__ = [
    "ATTACKS",
    "Attack",
    "AttributeInference",
    "AttributeRecovery",
    "Averaging",
    "ClassInversion",
    "Extraction",
    "Game",
    "Inversion",
    "JitterAveraging",
    "Membership",
    "OneRun",
    "Reidentification",
    "StraightThrough",
    "TableLearning",
]
