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

    The means of few rows are noisy; drawn towards the mean of all they err less, as any regularized
    decoder's would. How far is chosen for every feature by itself, so that it fits each known row
    best by the means of the others: of many features, a label may tell one and nothing of the rest.

    Shapes: labels (n,), known (n, d) -> (classes, d).
    """
    given, known = known.dtype, known.double()  # where the label tells all, no rounding is left
    means, center = label_means(labels, known, classes), known.mean(0)
    counts = torch.bincount(labels, minlength=classes).double()
    if int((counts > 0).sum()) < 2:
        return means.to(given)
    own = counts[labels].unsqueeze(1)
    others = (len(known) * center - known) / (len(known) - 1)
    # A row's class without the row itself; the only row of a class says nothing of others.
    mates = torch.where(own > 1, (own * means[labels] - known) / (own - 1).clamp_min(1), others)
    told, missed = mates - others, known - others
    weight = (told * missed).sum(0) / told.square().sum(0).clamp_min(1e-30)
    return (center + weight.clamp(0, 1) * (means - center)).to(given)
