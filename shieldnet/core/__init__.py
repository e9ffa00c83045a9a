"""Foundations: errors, checks of settings, statistics, randomness and operators."""
