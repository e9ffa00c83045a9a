"""Outputs that are not what they are taken for: probabilities or embeddings in place of logits."""

import math

import torch
from torch import Tensor

EMBEDDING_NAMES = (
    *("embedding", "embeddings", "sentence_embedding", "sentence_embeddings"),
    *("pooler_output", "last_hidden_state"),
)
"""Fields of an output that hold vectors, whatever they look like."""

_SURELY = 1e-5  # float32 softmaxes sum to 1 as closely as this, logits never do
_UNIT = {torch.float16: 3e-3, torch.bfloat16: 1e-2}  # rounding of half-precision numbers
_UNIT_IN_FLOAT32 = 1e-3
_MIN_ROWS = 4  # one row of logits may have length 1 by chance, four hardly
_MIN_DIMENSIONS = 3


def noise_beside(dimensions: int) -> float:
    """Returns a scale of noise that leaves unit vectors of so many dimensions of use.

    Vectors of length 1 keep a cosine of 0.85 to 0.93 to what they were, as the noise is half as
    long: searches still find the same neighborhood. Its mu is large; the certificate states it.
    """
    scale = 0.5 / math.sqrt(dimensions)
    return float(f"{scale:.0e}")


def looks_like_probabilities(rows: Tensor) -> bool:
    """Says whether every row is a distribution to within float rounding."""
    wide = rows.double()
    sums = (wide.sum(-1) - 1).abs() < _SURELY
    return bool(rows.numel()) and bool((sums & (wide.amin(-1) >= 0)).all())


class UnitVectors:
    """Looks whether the first rows of a model, over several answers if need be, have length 1.

    Logits have any length. Vectors of length 1 with numbers below 0 are embeddings that were
    normalized, as of a search; four different rows of three dimensions are enough to say so.
    """

    def __init__(self, done: bool = False) -> None:
        self._rows: set[int] = set()
        self.done = done  # nothing is looked for, or it was seen that there is nothing

    def found_in(self, rows: Tensor, dtype: torch.dtype) -> bool:
        """Takes in rows and says whether all so far are such. Shapes: (..., classes).

        dtype: in which the model gave them.
        """
        if self.done or not rows.numel():
            return False
        wide = rows.double().flatten(0, -2)
        within = _UNIT.get(dtype, _UNIT_IN_FLOAT32)
        lengths = wide.norm(dim=-1)
        if (
            wide.shape[-1] < _MIN_DIMENSIONS
            or bool(((lengths - 1).abs() > within).any())
            or not bool((wide.amin(-1) < 0).all())
        ):
            self.done = True
            return False
        # Distinct ones: the same row asked four times is one row.
        self._rows |= {hash(row.cpu().numpy().tobytes()) for row in wide[: 4 * _MIN_ROWS]}
        return len(self._rows) >= _MIN_ROWS
