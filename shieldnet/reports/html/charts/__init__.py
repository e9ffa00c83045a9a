"""The charts of a page: one Vega-Lite file each, and what fills it."""
