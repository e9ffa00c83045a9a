"""What an adversary knows of an input who sees its label alone."""

import torch
from torch import Tensor


def label_means(labels: Tensor, known: Tensor, classes: int) -> Tensor:
    """Returns the decoder that sees the label alone: the mean input of each class.

    A class without rows gets the mean of all. Shapes: labels (n,), known (n, d) -> (classes, d).
    """
    hot = torch.nn.functional.one_hot(labels, classes).to(known.dtype)
    counts = hot.sum(0).unsqueeze(-1)
    return torch.where(counts > 0, (hot.T @ known) / counts.clamp_min(1), known.mean(0))


def label_baseline(labels: Tensor, known: Tensor, classes: int) -> Tensor:
    """Returns what the best decoder that sees the label alone expects: shrunken class means.

    The means of few rows are noisy; drawn towards the mean of all as far as that noise accounts
    for their spread, they err less, as any regularized decoder's would.

    Shapes: labels (n,), known (n, d) -> (classes, d).
    Source: empirical Bayes, Efron and Morris 1973.
    """
    means, center = label_means(labels, known, classes), known.mean(0)
    counts = torch.bincount(labels, minlength=classes).to(known.dtype)
    present = counts > 0
    if int(present.sum()) < 2:
        return means
    noise = (known - means[labels]).square().sum() / max(1, len(known) - int(present.sum()))
    spread = (means - center).square().sum(1)[present].mean()
    own = (spread - noise * (1 / counts[present]).mean()).clamp_min(0)
    weight = own / (own + noise / counts.clamp_min(1)).clamp_min(1e-30)
    return center + weight.unsqueeze(1) * (means - center)
