"""Serving with budgets: every answer is charged to its client before it exists."""

from shieldnet.serving.budget import Balance, Budget
from shieldnet.serving.clients import client, current_client
from shieldnet.serving.guard import Guard
from shieldnet.serving.ledger import Charge, Ledger
from shieldnet.serving.middleware import BudgetMiddleware
from shieldnet.serving.watch import QueriesRefused, Watch, WatchPolicy

__all__ = [
    "Balance",
    "Budget",
    "BudgetMiddleware",
    "Charge",
    "Guard",
    "Ledger",
    "QueriesRefused",
    "Watch",
    "WatchPolicy",
    "client",
    "current_client",
]
