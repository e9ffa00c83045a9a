"""Perturbed copies of records, for attacks that see labels alone."""

import torch
from torch import Tensor

from shieldnet.attacks.adversary.scales import Scale

COPIES = 16
"""Perturbed copies of a record that label-only attacks ask about."""
_MAX_ROWS = 1000  # records whose copies are asked about, fewer of many features
_MAX_NUMBERS = 5 * 10**7
_MIN_ROWS = 100


def max_perturbed_rows(inputs: Tensor) -> int:
    """Counts the records whose copies are asked about: fewer where each has many numbers."""
    fit = _MAX_NUMBERS // (COPIES * inputs[0].numel())
    return max(_MIN_ROWS, min(_MAX_ROWS, fit))


def widths(copies: int = COPIES) -> Tensor:
    """Returns how far each copy is moved, in deviations. Shapes: -> (copies,)."""
    return torch.logspace(-1, 0, copies)


def perturbed(inputs: Tensor, reference: Tensor, seed: int, copies: int = COPIES) -> Tensor:
    """Returns copies of inputs with normal noise of growing width, the same for every record.

    How far a record can be moved before its label changes tells how sure the model is of it, even
    to somebody who sees labels alone (Choquette-Choo et al. 2021). Widths go from 0.1 to 1 standard
    deviation that each feature has in the reference rows; what is constant there is not moved.

    Shapes: inputs and reference (rows, ...) -> (copies, rows, ...).
    """
    generator = torch.Generator().manual_seed(seed)
    far = widths(copies).reshape(-1, *[1] * inputs.dim())
    steps = torch.randn(copies, 1, *inputs.shape[1:], generator=generator)
    return (inputs + steps * far * _deviations(reference)).to(inputs.dtype)


def _deviations(reference: Tensor) -> Tensor:
    """Returns the deviation of every feature, 0 where it is constant. Shapes: -> of one input."""
    varies = reference.amax(0) > reference.amin(0)
    return Scale.of(reference).deviation.reshape(reference.shape[1:]) * varies
