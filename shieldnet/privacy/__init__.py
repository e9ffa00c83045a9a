"""Proven bounds: privacy costs, events, certificates and guarantees."""
