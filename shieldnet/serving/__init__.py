"""Serving with budgets: every answer is charged to its client before it exists."""
