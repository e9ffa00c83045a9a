"""What everything stands on: errors, checks, statistics, randomness, operators."""
