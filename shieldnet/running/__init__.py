"""Where long work runs, and what is kept of it."""
