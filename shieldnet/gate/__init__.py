"""The release gate: metrics, policies and verdicts."""
