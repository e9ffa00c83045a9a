"""Measurements that are not attacks."""

from shieldnet.checks.attribution import Attribution
from shieldnet.checks.base import Check
from shieldnet.checks.calibration import Calibration
from shieldnet.checks.masking import Masking
from shieldnet.checks.memorization import Memorization

CHECKS: tuple[type[Check], ...] = (Attribution, Masking, Calibration, Memorization)

__all__ = ["CHECKS", "Attribution", "Calibration", "Check", "Masking", "Memorization"]
