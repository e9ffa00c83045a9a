"""Outputs of models: their layout, and whether rows are answered independently."""
