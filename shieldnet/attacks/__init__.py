"""What adversaries do, one idea a file."""

from shieldnet.attacks.attributes import AttributeInference, AttributeRecovery
from shieldnet.attacks.averaging import Averaging
from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.extraction import Extraction
from shieldnet.attacks.inversion.classes import ClassInversion
from shieldnet.attacks.inversion.decoding import Inversion
from shieldnet.attacks.inversion.denoising import JitterAveraging, TableLearning
from shieldnet.attacks.inversion.map_probes import MapProbing
from shieldnet.attacks.inversion.map_search import MapSearch
from shieldnet.attacks.inversion.maps import MapInversion
from shieldnet.attacks.inversion.reidentification import Reidentification
from shieldnet.attacks.inversion.search import Search
from shieldnet.attacks.inversion.white_box import StraightThrough
from shieldnet.attacks.membership.attack import Membership
from shieldnet.attacks.membership.one_run import OneRun
from shieldnet.attacks.positions.averaging import PositionAveraging
from shieldnet.attacks.positions.completion import TextExtraction
from shieldnet.attacks.positions.maps import MapMembership
from shieldnet.attacks.positions.model_secrets import HiddenSize, LogitBias
from shieldnet.attacks.positions.prompts import PromptInversion
from shieldnet.attacks.positions.sequences import SequenceMembership
from shieldnet.attacks.timing import Timing
from shieldnet.findings.finding import NotApplicable, Outcome

ATTACKS: tuple[type[Attack], ...] = (
    *(Inversion, Search, StraightThrough, Reidentification),
    *(Membership, SequenceMembership, Averaging, OneRun),
    *(AttributeRecovery, AttributeInference),
    *(Extraction, TextExtraction, ClassInversion),
    *(JitterAveraging, TableLearning),
    *(MapInversion, MapProbing, MapSearch, MapMembership, PositionAveraging),
    *(PromptInversion, HiddenSize, LogitBias),
    Timing,
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
    "HiddenSize",
    "Inversion",
    "JitterAveraging",
    "LogitBias",
    "MapInversion",
    "MapMembership",
    "MapProbing",
    "MapSearch",
    "Membership",
    "NotApplicable",
    "OneRun",
    "Outcome",
    "PositionAveraging",
    "PromptInversion",
    "Reidentification",
    "Search",
    "SequenceMembership",
    "StraightThrough",
    "TableLearning",
    "TextExtraction",
    "Timing",
]
