"""The audit: what is given, what is played, and who is told."""
