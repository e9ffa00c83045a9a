"""The hardened folder: all that was audited and nothing else, written, verified and loaded."""
