"""Limits that a release must meet."""
