"""Was this record in the training data? Its means over positions beside those of shadows."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from shieldnet.attacks.membership.likelihood import OFFLINE, info_rmia, lira, lira_offline

COLUMNS = 4
"""Sums that are kept over some positions: log p where it was released, how often it was not, capped
log p, how often the winner was right."""


def means_of_sums(sums: Tensor, counted: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the means of log p, of capped log p and of being right.

    floor: the probability that a released zero is read as.
    Shapes: sums (shadows, rows, 4), counted (rows,) positions -> each (shadows, rows).
    """
    released, hidden, capped, right = sums.unbind(-1)
    loss = (released + hidden * math.log(floor)) / counted
    return loss, capped / counted, right / counted


def beside_shadows(
    target: Mapping[str, Tensor],
    said: Mapping[str, Tensor],
    trained_on: Tensor,
    owned: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Scores a target's means by those of shadows: LiRA on each, RMIA on the loss.

    target: means by name, loss among them. said: the shadows', by the same names. owned: the loss
    of the adversary's own records by the target and by the shadows, none of which was trained on
    them; without any, the records themselves are the population of RMIA.
    Shapes: target (rows,), said (shadows, rows), trained_on the same, bool; owned (others,),
    (shadows, others) -> each (rows,).
    """
    population = target["loss"].exp(), said["loss"].exp(), trained_on
    if owned is not None:
        none = torch.zeros_like(owned[1], dtype=torch.bool)
        population = owned[0].exp(), owned[1].exp(), none
    records = target["loss"].exp(), said["loss"].exp(), trained_on, population
    scores = {
        "LiRA" if name == "loss" else f"LiRA on {name}": lira(target[name], said[name], trained_on)
        for name in said
    }
    return scores | {
        "LiRA offline": lira_offline(target["loss"], said["loss"], trained_on),
        "RMIA": info_rmia(*records),
        "RMIA offline": info_rmia(*records, offline=OFFLINE),
    }
