"""Serves a guarded model with Ray Serve: replicas share one ledger, so none cheats another.

On several machines the ledger is a server: "redis://..." or "postgresql://...".
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
from ray import serve
from torch import nn

import shieldnet as sn


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.1})
class Guarded:
    """Charges each request to its client before the model is asked."""

    def __init__(self, ledger: str) -> None:
        model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5)).eval()
        shield = sn.harden(model, extent=sn.Extent(classes=5))
        self.guard = sn.Guard(shield, ledger=ledger, queries_per_client=4, window="day")

    async def __call__(self, client: str, row: list[float]) -> Any:
        try:
            answer = await self.guard.answer(torch.tensor([row]), client=client)
        except sn.errors.BudgetExceeded:
            return "budget exceeded"
        return answer.softmax(-1)[0].tolist()


def main() -> None:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with TemporaryDirectory() as folder:
        app = Guarded.bind(f"sqlite:///{Path(folder) / 'budget.db'}")
        handle = serve.run(app, name="guarded", route_prefix=None)
        answers = [handle.remote("alice", [0.5] * 20) for _ in range(8)]
        for answer in answers:
            print(answer.result())
        serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
