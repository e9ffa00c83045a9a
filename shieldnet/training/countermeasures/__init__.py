"""Trainings that make attacks harder, without a proof."""
