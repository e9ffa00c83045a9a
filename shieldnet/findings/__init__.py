"""What was measured, and what its name means."""
