"""Measurements that are not attacks."""

from shieldnet.checks.attribution import Attribution
from shieldnet.checks.calibration import Calibration
from shieldnet.checks.masking import Masking
from shieldnet.checks.memorization import Memorization

__all__ = ["Attribution", "Calibration", "Masking", "Memorization"]
