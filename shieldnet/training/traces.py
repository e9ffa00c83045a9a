"""Which records does the trainer's own log say are at risk? No shadow needed."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from shieldnet.findings.finding import Exposed

_MAX_NUMBERS = 2 * 10**7  # kept of a training; of longer ones, every second epoch, or fewer
_MIN_EPOCHS = 4
_WORDS = "mean loss over the epochs; the trainer's view"


@dataclass(frozen=True)
class Traces:
    """Holds the loss of every record in every epoch that was kept, as training saw it.

    A record that was learned late was learned for its own sake, not from others: it is at risk.
    This is what the trainer sees while training, and costs nothing; no adversary has it, so it is
    no finding and is not judged. It orders records, and says nothing of how many are found.

    Shapes: losses (epochs, records), NaN where a record was not seen.
    Source: Pollock et al. 2024 (arXiv:2411.05743); the mean in the place of their range between
    quartiles, as measured in benchmarks/traces.py.
    """

    losses: Tensor

    @property
    def risks(self) -> Tensor:
        """Returns the mean loss of each record over the epochs. Shapes: -> (records,)."""
        return self.losses.double().nanmean(0).nan_to_num(0.0)

    @property
    def exposed(self) -> Exposed:
        """Returns the ten records most at risk: row indices, never contents."""
        risks = self.risks
        rows = torch.arange(len(risks))
        return Exposed.of("loss traces", "members", rows, risks, risks, _WORDS)


@dataclass
class Tracing:
    """Keeps the losses that training computes anyway. epochs: of the training; records: of it."""

    epochs: int
    records: int
    _losses: Tensor = field(init=False, repr=False)
    _every: int = field(init=False)

    def __post_init__(self) -> None:
        self._every = max(1, -(-self.epochs * self.records // _MAX_NUMBERS))
        kept = -(-self.epochs // self._every)
        self._losses = torch.full((kept, self.records), torch.nan)

    def keep(self, epoch: int, rows: Tensor, losses: Tensor) -> None:
        """Notes the losses of a batch. Shapes: rows, losses (batch,)."""
        place, rest = divmod(epoch, self._every)
        if not rest:
            self._losses[place, rows] = losses.detach().float().cpu()

    @property
    def traces(self) -> Traces | None:
        """Returns what was kept; None for fewer than four epochs, which tell little."""
        seen = self._losses[~self._losses.isnan().all(1)]
        return Traces(seen) if len(seen) >= _MIN_EPOCHS else None
