"""One score of many: the weights that separate records whose truth is known."""

import torch
from torch import Tensor, nn


def ensemble(known: Tensor, truth: Tensor, scored: Tensor) -> Tensor:
    """Weighs scores by logistic regression on records whose truth is known.

    Shapes: known (m, columns), truth (m,) bool, scored (n, columns) -> (n,).
    """
    center, spread = known.mean(0), known.std(0).clamp_min(1e-9)
    known, scored = (((rows - center) / spread).clamp(-6, 6) for rows in (known, scored))
    weights = torch.zeros(known.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    target = truth.double()
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logit = known @ weights[1:] + weights[0]
        loss = nn.functional.binary_cross_entropy_with_logits(logit, target)
        loss = loss + 1e-3 * weights[1:].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return (scored @ weights[1:] + weights[0]).detach()
