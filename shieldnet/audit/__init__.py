"""The audit: attack, measure, judge, report."""

from shieldnet.audit.policy import Policy
from shieldnet.audit.report import Report
from shieldnet.audit.suite import audit

__all__ = ["Policy", "Report", "audit"]
