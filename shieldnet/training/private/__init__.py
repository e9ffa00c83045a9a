"""Differentially private training."""
