"""Detection of outputs that are probabilities or embeddings instead of logits."""

import math

import torch
from torch import Tensor

EMBEDDING_NAMES = (
    *("embedding", "embeddings", "sentence_embedding", "sentence_embeddings"),
    *("pooler_output", "last_hidden_state"),
)
"""Fields of an output that contain vectors, whatever their values."""

_SURELY = 1e-5  # float32 softmaxes sum to 1 this closely, logits never do
_UNIT = {torch.float16: 3e-3, torch.bfloat16: 1e-2}  # rounding of half-precision numbers
_UNIT_IN_FLOAT32 = 1e-3
_MIN_ROWS = 4  # a row of logits may have length 1 by chance, but rarely four rows
_MIN_DIMENSIONS = 3


def noise_beside(dimensions: int) -> float:
    """Returns a scale of noise that leaves unit vectors of so many dimensions of use.

    Vectors of length 1 keep a cosine of 0.85 to 0.93 to what they were, as the noise is half as
    long: searches still find the same neighborhood. Its mu is large; the certificate states it.
    """
    scale = 0.5 / math.sqrt(dimensions)
    return float(f"{scale:.0e}")


def looks_like_probabilities(rows: Tensor) -> bool:
    """Returns whether every row is a distribution up to rounding."""
    wide = rows.double()
    sums = (wide.sum(-1) - 1).abs() < _SURELY
    return bool(rows.numel()) and bool((sums & (wide.amin(-1) >= 0)).all())


class UnitVectors:
    """Detects models whose first rows, over several answers if necessary, have length 1.

    Logits have any length. Vectors of length 1, negative numbers among them, are normalized
    embeddings, as for a search; four different rows of three dimensions suffice.
    """

    def __init__(self, done: bool = False) -> None:
        self._rows: set[int] = set()
        self._any_negative = False
        self.done = done  # the search is disabled, or has finished without a result

    def found_in(self, rows: Tensor, dtype: torch.dtype) -> bool:
        """Adds rows and returns whether all so far are unit vectors. Shapes: (..., classes).

        dtype: dtype of the model's output.
        """
        if self.done or not rows.numel():
            return False
        wide = rows.double().flatten(0, -2)
        within = _UNIT.get(dtype, _UNIT_IN_FLOAT32)
        lengths = wide.norm(dim=-1)
        if wide.shape[-1] < _MIN_DIMENSIONS or bool(((lengths - 1).abs() > within).any()):
            self.done = True
            return False
        self._any_negative |= bool((wide < 0).any())
        # Only distinct rows count: the same row four times is one row.
        self._rows |= {hash(row.cpu().numpy().tobytes()) for row in wide[: 4 * _MIN_ROWS]}
        if len(self._rows) < _MIN_ROWS:
            return False
        self.done = not self._any_negative  # such as labels, one of them 1 and the others 0
        return self._any_negative
