"""Loss and accuracy of a model on validation records."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shieldnet.core.statistics import Interval, mean
from shieldnet.findings.finding import decimals
from shieldnet.training.ids import naming_ids
from shieldnet.training.losses import Criterion, Loss
from shieldnet.training.records import Records

_BATCH_ROWS = 512


@dataclass(frozen=True)
class Validation:
    """Holds the loss and accuracy of a model on held-out records.

    loss: mean over the records. accuracy: share of correct answers with its 95% interval; None if
    there are no classes, or the loss is custom. samples: number of records.
    """

    loss: float
    accuracy: Interval | None
    samples: int

    def __str__(self) -> str:
        text = f"loss {decimals(self.loss)}"
        if self.accuracy is not None:
            low, high = decimals(self.accuracy.low), decimals(self.accuracy.high)
            text += f", accuracy {decimals(self.accuracy.value)} [{low}, {high}]"
        return f"{text} ({self.samples} records)"


def validated(model: nn.Module, records: Records, loss: Loss) -> Validation:
    """Runs a copy of a model in evaluation mode on every record, without changing the records.

    The global random states are preserved.
    """
    copied = copy.deepcopy(model).eval()
    device = next((weight.device for weight in copied.parameters()), torch.device("cpu"))
    losses, hits = [], []
    with torch.random.fork_rng(), torch.no_grad(), naming_ids(model, records):
        for start in range(0, len(records), _BATCH_ROWS):
            inputs, labels = records.rows(slice(start, start + _BATCH_ROWS), device)
            output = copied(inputs.clone())  # it may write into them
            losses.append(loss(output, labels).double().cpu())
            if isinstance(loss, Criterion):
                hits.append(loss.hits(output, labels))
    return Validation(float(torch.cat(losses).mean()), _accuracy(hits), len(records))


def _accuracy(hits: list[Tensor | None]) -> Interval | None:
    shares = [share for share in hits if share is not None]
    if not shares or len(shares) < len(hits):
        return None
    counted = torch.cat(shares).double().cpu()
    counted = counted[~counted.isnan()]  # NaN: all positions of the record are ignored
    return mean(counted) if len(counted) else None
