"""Weights that lower a smooth loss: what logistic regressions of all attacks are fitted by."""

from collections.abc import Callable

import torch
from torch import Tensor


def fitted_weights(count: int, loss: Callable[[Tensor], Tensor], *, max_steps: int) -> Tensor:
    """Lowers a loss of so many weights, from zeros on, by L-BFGS with line search, in float64.

    Shapes: -> (count,).
    """
    weights = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=max_steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(weights)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()
