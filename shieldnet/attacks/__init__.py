"""What adversaries do, one idea a file."""

from shieldnet.attacks.averaging import Averaging
from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.denoising import JitterAveraging, TableLearning
from shieldnet.attacks.inversion import Inversion, Reidentification
from shieldnet.attacks.membership import Membership

__all__ = [
    "Attack",
    "Averaging",
    "Game",
    "Inversion",
    "JitterAveraging",
    "Membership",
    "Reidentification",
    "TableLearning",
]
