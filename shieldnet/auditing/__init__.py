"""The audit: its inputs, its attacks and checks, and its progress messages."""
