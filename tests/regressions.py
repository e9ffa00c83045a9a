"""A regression that several tests share, whose records each pull their own answer."""

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """Predicts values of each row. Shapes: (n, columns) -> (n, outputs)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def least_squares(data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    """Least squares on few records: each pulls its own answer by its leverage."""
    inputs, targets = data
    return Linear(torch.linalg.lstsq(inputs, targets.reshape(len(inputs), -1)).solution)
