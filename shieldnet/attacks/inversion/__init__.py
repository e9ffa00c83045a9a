"""Inputs and classes, drawn from answers."""
