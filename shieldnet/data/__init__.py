"""Data: examples, canaries, duplicates and hashes."""
