"""Execution of long work, and caching of its results."""
