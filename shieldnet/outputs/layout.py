"""What a model's output is, where its classes lie, and whether it may be defended."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.core.opaque_ops import is_captured, opaque, refuse_recording
from shieldnet.outputs.mistaken import UnitVectors, looks_like_probabilities, noise_beside

Kind = Literal[
    "logits",
    "probabilities",
    "labels",
    "binary_logits",
    "binary_probabilities",
    "values",
    "embeddings",
    "integers",
]
"""What numbers mean. logits, probabilities: of classes, one of which is right. binary_...: each
number is a binary decision of its own: a single logit, or those of a multi-label model. labels:
class indices. values: of a regression. embeddings: vectors. integers: whole steps of a mechanism.
"""
KINDS: tuple[str, ...] = get_args(Kind)
MODEL_KINDS: tuple[str, ...] = tuple(kind for kind in KINDS if kind not in ("labels", "integers"))
ROW_KINDS: dict[Kind, Kind] = {"binary_logits": "logits", "binary_probabilities": "probabilities"}
"""A binary decision is a row of two classes: the kind of that row."""

ZERO_LOGIT = -1024.0
"""The logit of a released zero: exact in every float type, and exp of it is 0 in all of them."""

_SUM_TOLERANCE = 1e-2  # half precision and softmaxes over 100,000 classes stay well inside


@dataclass(frozen=True)
class Layout:
    """Says what an output holds and where, and turns it into rows and back.

    kind: of the numbers. axis: of the classes (or of an embedding's dimensions); needed where the
    output is not (rows, classes): 1 for a segmentation (N, K, H, W), -1 for a language model
    (N, T, V). ``opened`` gives (N, *positions, classes): a pixel or a token is a position, and all
    positions of a row are one answer. A binary decision becomes a row of two classes, all values of
    an example one row.
    """

    kind: Kind
    axis: int | None = None

    def __post_init__(self) -> None:
        axis = self.axis
        if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool) or axis == 0):
            raise ConfigError(
                f"Expected axis as a whole number, but not 0 (the examples); got {axis!r}."
            )

    @property
    def has_positions(self) -> bool:
        """Says whether an answer may be more than one row."""
        return self.axis is not None or self.kind in ROW_KINDS

    @property
    def row_kind(self) -> Kind:
        """Names the kind of the rows that ``opened`` gives."""
        return ROW_KINDS.get(self.kind, self.kind)

    def opened(self, output: object) -> Tensor:
        """Returns the model's numbers as rows in at least float32, or raises AnswerError.

        Shapes: floating point -> (N, *positions, classes) float32 or float64.
        Errors: nothing, another type, another shape, whole or complex numbers, fewer than two
            classes, NaN or Inf in any row, rows that are no distribution though declared so. The
            message names the first bad row and, of a row that is no distribution, the sum, never
            its values.
            ConfigError inside torch.jit.trace and its like (``refuse_recording``).
        """
        refuse_recording("what is released")
        tensor = _tensor_of(output)
        if not tensor.is_floating_point():
            raise AnswerError(
                f"Expected floating-point {self.kind}, got {tensor.dtype}. Shield what gives "
                "scores, such as a classifier's predict_proba, not labels that are already chosen."
            )
        if tensor.is_meta:
            raise AnswerError("The model gave a tensor without data (device meta).")
        if tensor.dtype not in (torch.float32, torch.float64):
            tensor = tensor.float()
        return self._with_classes_last(refuse(tensor, self.kind, self._axis_of(tensor)))

    def refuse_mistaken(self, output: object, vectors: UnitVectors) -> None:
        """Raises AnswerError for first outputs whose logits are none, by all they show.

        Probabilities, whose rows are positive and sum to 1 to within float rounding, would be put
        through a softmax again. Embeddings, all of length 1, have no classes at all.
        vectors: what was seen so far of embeddings; done where the user says that they are logits.
        """
        if self.kind != "logits" or is_captured():
            return
        rows = self.opened(output)
        if looks_like_probabilities(rows):
            raise AnswerError(
                "The model's logits are probabilities, it seems: no number is below 0 and every "
                "row sums to 1. Say outputs='probabilities', or return what comes before the "
                "softmax."
            )
        if isinstance(output, Tensor) and vectors.found_in(rows, output.dtype):
            axis = "" if self.axis is None else f", axis={self.axis}"
            noise = f"sn.GaussianNoise({noise_beside(rows.shape[-1])})"
            raise AnswerError(
                "The model's answers are embeddings, it seems: every row is a vector of length 1. "
                "Taken for scores of classes they would be ruined; nothing was released. Say "
                f"sn.Shield(model, sn.ClipNorm(1.0), {noise}, outputs='embeddings'{axis}), or "
                "insist with outputs='logits'."
            )

    def sizes(self, shape: torch.Size) -> tuple[int, tuple[int, ...]]:
        """Returns the classes of a row, and the positions of an answer, of an output's shape."""
        if self.kind in ROW_KINDS:
            return 2, tuple(shape[1:])
        if self.kind == "values":
            return math.prod(shape[1:]), ()
        classes = -1 if self.axis is None else self.axis
        position = classes % len(shape)
        return shape[position], tuple(shape[1:position]) + tuple(shape[position + 1 :])

    def closed(self, answers: Tensor, shape: torch.Size, released: Kind) -> Tensor:
        """Puts defended rows back into the form of the model's output.

        shape: of the output. released: the kind of ``answers``; labels lose their class axis.
        """
        if self.kind in ROW_KINDS:
            if released in ("logits", "integers"):
                return answers[..., 1] - answers[..., 0]
            return answers[..., 1] if released == "probabilities" else answers
        if self.kind == "values":
            return answers.reshape(shape)
        if released == "labels" or self.axis is None:
            return answers
        return answers.movedim(-1, self.axis)

    def _axis_of(self, tensor: Tensor) -> int:
        if self.kind in ROW_KINDS or self.kind == "values":
            _require_examples(tensor, self.kind)
            return 0
        return _class_axis(tensor, self.kind, self.axis)

    def _with_classes_last(self, tensor: Tensor) -> Tensor:
        if self.kind == "binary_logits":
            return torch.stack([torch.zeros_like(tensor), tensor], -1)
        if self.kind == "binary_probabilities":
            return torch.stack([1 - tensor, tensor], -1)
        if self.kind == "values":
            return tensor.unsqueeze(1) if tensor.dim() == 1 else tensor.flatten(1)
        if self.axis is not None:
            tensor = tensor.movedim(self.axis, -1)
        if self.kind == "probabilities":
            return tensor / tensor.sum(-1, keepdim=True)
        return tensor


def require_finite(answers: Tensor, stage: object) -> Tensor:
    """Raises AnswerError where a defense ran out of float range; returns the answers."""
    if is_captured():
        checked: Tensor = answers + _zero_unless_overflowing(answers, str(stage))
        return checked
    _refuse_overflow(answers, stage)
    return answers


def refuse(tensor: Tensor, kind: str, axis: int) -> Tensor:
    """Raises AnswerError for rows that cannot be defended; returns the tensor."""
    if is_captured():
        checked: Tensor = tensor + _zero_unless_refused(tensor, kind, axis)
        return checked
    _refuse(tensor, kind, axis)
    return tensor


# A compiler leaves out what nothing depends on, so a check gives a zero that is added.
@opaque(lambda answers, stage: answers.new_empty(()))
def _zero_unless_overflowing(answers: Tensor, stage: str) -> Tensor:
    _refuse_overflow(answers, stage)
    return answers.new_zeros(())


@opaque(lambda tensor, kind, axis: tensor.new_empty(()))
def _zero_unless_refused(tensor: Tensor, kind: str, axis: int) -> Tensor:
    _refuse(tensor, kind, axis)
    return tensor.new_zeros(())


def _refuse_overflow(answers: Tensor, stage: object) -> None:
    if not _finite(answers):
        raise AnswerError(
            f"{stage} gave NaN or Inf; nothing was released. The model's scores are too large for "
            "this setting: check the model's inputs, or choose a milder setting."
        )


def _refuse(tensor: Tensor, kind: str, axis: int) -> None:
    if kind == "probabilities":
        total = tensor.sum(axis)
        # Written so that NaN and Inf are wrong too: one look decides.
        right = ((total - 1).abs() <= _SUM_TOLERANCE) & (tensor.amin(axis) >= 0)
        if not right.all():
            _require_finite_rows(tensor)
            row = _first(~right)
            raise AnswerError(
                f"Row {row} of {len(tensor)} is no distribution: it sums to "
                f"{_worst_total(total[row])}. Expected probabilities >= 0 that sum to 1; if the "
                "model gives logits, use outputs='logits'."
            )
    elif kind == "binary_probabilities":
        right = (tensor >= 0) & (tensor <= 1)
        if not right.all():
            _require_finite_rows(tensor)
            raise AnswerError(
                f"Row {_first(~right)} of {len(tensor)} holds numbers outside [0, 1]. Expected "
                "probabilities; if the model gives logits, use outputs='binary_logits'."
            )
    elif not _finite(tensor):
        _require_finite_rows(tensor)


def _finite(scores: Tensor) -> bool:
    # One pass: NaN and Inf never leave a sum; a finite sum that overflows is looked at again.
    return math.isfinite(scores.sum().item()) or bool(torch.isfinite(scores).all())


def _require_finite_rows(tensor: Tensor) -> None:
    broken = ~torch.isfinite(tensor)
    if broken.any():
        raise AnswerError(
            f"The model gave NaN or Inf in row {_first(broken)} of {len(tensor)}; nothing was "
            "released. Check the input, or run the model in a wider float type."
        )


def _first(wrong: Tensor) -> int:
    return int(wrong.nonzero()[0, 0])


def _worst_total(totals: Tensor) -> str:
    flat = totals.flatten()
    return f"{float(flat[(flat - 1).abs().argmax()]):.3g}"


def _tensor_of(output: object) -> Tensor:
    if output is None:
        raise AnswerError(
            "The model returned nothing. Expected a tensor (rows, classes): "
            "does its forward end in a return?"
        )
    if not isinstance(output, Tensor):
        raise AnswerError(
            f"Expected the answer to be a tensor, got {type(output).__name__}. "
            "Name the field that holds it, such as outputs={'logits': 'logits'}."
        )
    if type(output) is not Tensor and not is_captured():
        return output.as_subclass(Tensor)  # a subclass may carry more than numbers
    return output


def _require_examples(tensor: Tensor, kind: str) -> None:
    if tensor.dim() == 0 or 0 in tensor.shape[1:]:
        raise AnswerError(
            f"Expected {kind} of shape (rows,) or (rows, ...), got shape {tuple(tensor.shape)}."
        )


def _class_axis(tensor: Tensor, kind: str, axis: int | None) -> int:
    """Returns the axis of the classes, or says how to name it."""
    shape, rank = tuple(tensor.shape), tensor.dim()
    if axis is None and rank > 2:
        raise AnswerError(
            f"The model's {kind} have shape {shape}: say where the classes are, axis=1 for a "
            "segmentation (rows, classes, height, width), axis=-1 for a language model "
            "(rows, tokens, classes)."
        )
    position = -1 if axis is None else axis
    if rank < 2 or not -rank < position < rank:
        wanted = "" if axis is None else f" with axis={axis}"
        raise AnswerError(
            f"Expected scores of shape (rows, classes){wanted}, got shape {shape}. "
            "One number a row? Use outputs='binary_logits' or 'values'."
        )
    if tensor.shape[position] < (1 if kind == "embeddings" else 2) or 0 in shape[1:]:
        raise AnswerError(
            f"Expected scores of shape (rows, classes) with at least 2 classes, got shape {shape}."
            " One number a row? Use outputs='binary_logits' or 'values'."
        )
    return position
