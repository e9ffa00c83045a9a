"""What a model's output is, and whether it may be defended: the kinds and their checks."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from shieldnet.errors import AnswerError

Kind = Literal["logits", "probabilities", "labels"]
KINDS: tuple[str, ...] = get_args(Kind)
MODEL_KINDS: tuple[str, ...] = ("logits", "probabilities")

ZERO_LOGIT = -1024.0
"""The logit of a released zero: exact in every float type, and exp of it is 0 in all of them."""

_SUM_TOLERANCE = 1e-2  # half precision and softmaxes over 100,000 classes stay well inside


def checked(output: object, kind: Kind) -> Tensor:
    """Returns the model's scores in at least float32, or raises AnswerError.

    Shapes: output (rows, classes) floating point -> (rows, classes) float32 or float64.
    Errors: nothing, another type, another shape, whole or complex numbers, fewer than two
        classes, NaN or Inf in any row, rows that are no distribution though declared so. The
        message names the first bad row, never its values.
    """
    if output is None:
        raise AnswerError(
            "The model returned nothing. Expected a tensor (rows, classes): "
            "does its forward end in a return?"
        )
    if not isinstance(output, Tensor):
        raise AnswerError(
            f"Expected the model to return a tensor (rows, classes), got {type(output).__name__}. "
            "Wrap the model in a module that returns the scores alone."
        )
    if output.dim() != 2 or output.shape[-1] < 2:
        raise AnswerError(
            f"Expected scores of shape (rows, classes) with at least 2 classes, "
            f"got shape {tuple(output.shape)}."
        )
    if not output.is_floating_point():
        raise AnswerError(f"Expected floating-point {kind}, got {output.dtype}.")
    scores = output.to(torch.promote_types(output.dtype, torch.float32))
    if not _finite(scores):
        row = int((~torch.isfinite(scores).all(-1)).nonzero()[0])
        raise AnswerError(
            f"The model gave NaN or Inf in row {row} of {len(scores)}; nothing was released. "
            "Check the input, or run the model in a wider float type."
        )
    if kind == "probabilities":
        _check_distribution(scores)
        return scores / scores.sum(-1, keepdim=True)
    return scores


def require_finite(answers: Tensor, stage: object) -> None:
    """Raises AnswerError where a defense of unbounded logits ran out of float range."""
    if not _finite(answers):
        raise AnswerError(
            f"{stage} gave NaN or Inf; nothing was released. The model's scores are too large for "
            "this setting: check the model's inputs, or choose a milder setting."
        )


def _finite(scores: Tensor) -> bool:
    # One pass: NaN and Inf never leave a sum; a finite sum that overflows is looked at again.
    return math.isfinite(float(scores.detach().sum())) or bool(torch.isfinite(scores).all())


def _check_distribution(scores: Tensor) -> None:
    wrong = ((scores.sum(-1) - 1).abs() > _SUM_TOLERANCE) | (scores < 0).any(-1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise AnswerError(
            f"Row {row} of {len(scores)} is no distribution. Expected probabilities >= 0 that sum "
            "to 1; if the model gives logits, use outputs='logits'."
        )
