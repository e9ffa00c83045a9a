"""Findings: measured values, and the metrics that define their names."""
