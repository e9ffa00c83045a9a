"""The model with its defenses."""
