"""Measurements that are not attacks."""

from shieldnet.attacks.base import Attack
from shieldnet.checks.attribution import Attribution
from shieldnet.checks.calibration import Calibration
from shieldnet.checks.masking import Masking
from shieldnet.checks.memorization import Memorization

CHECKS: tuple[type[Attack], ...] = (Attribution, Masking, Calibration, Memorization)

__all__ = ["CHECKS", "Attribution", "Calibration", "Masking", "Memorization"]
