"""The audit: attack, measure, judge, report."""

from shieldnet.auditing.policy import Policy
from shieldnet.auditing.report import Report
from shieldnet.auditing.suite import audit

__all__ = ["Policy", "Report", "audit"]
