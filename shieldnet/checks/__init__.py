"""Measurements that are not attacks."""

from shieldnet.checks.attribution import Attribution
from shieldnet.checks.masking import Masking

__all__ = ["Attribution", "Masking"]
