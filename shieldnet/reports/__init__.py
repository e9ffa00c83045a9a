"""What was measured and proven, and every form of it."""
