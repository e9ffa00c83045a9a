"""Runnable examples; ``examples.digits`` also serves the command line of the README."""
