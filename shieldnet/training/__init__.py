"""Training: models of one's own, many at once."""
