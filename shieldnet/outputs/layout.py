"""The layout of a model's output: its kind, its class axis, and checks that it can be defended."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.core.opaque_ops import is_captured, lowered_checks, opaque, refuse_recording
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
"""The meaning of numbers. logits, probabilities: of classes, exactly one of which is correct.
binary_...: each number is an independent binary decision: a single logit, or those of a multi-label
model. labels: class indices. values: of a regression. embeddings: vectors. integers: steps of a
mechanism.
"""
KINDS: tuple[str, ...] = get_args(Kind)
MODEL_KINDS: tuple[str, ...] = tuple(kind for kind in KINDS if kind not in ("labels", "integers"))
ROW_KINDS: dict[Kind, Kind] = {"binary_logits": "logits", "binary_probabilities": "probabilities"}
"""The kind of the row of two classes that a binary decision becomes."""

ZERO_LOGIT = -1024.0
"""The logit of a released zero: exact in every float dtype, and its exp is 0 in all of them."""

Positions = Literal["all", "last"]
"""Which positions of an answer are released."""

_WITH_CLASSES = ("logits", "probabilities", "embeddings")
_MAX_PLAIN = 64  # numbers up to which Python adds them in less time than torch
_WIDE = (torch.float32, torch.float64)
_SUM_TOLERANCE = 1e-2  # half precision and softmaxes over 100,000 classes stay well inside


@dataclass(frozen=True)
class Layout:
    """Describes an output, and converts it to rows and back.

    kind: of the numbers. axis: of the classes (or of an embedding's dimensions); required unless
    the output is (rows, classes): 1 for a segmentation (N, K, H, W), -1 for a language model
    (N, T, V). ``opened`` returns (N, *positions, classes): a pixel or token is a position, and all
    positions of a row are one answer; with positions "last" the others are left out, and cost
    nothing. A binary decision becomes a row of two classes; all values of
    an example become one row.
    """

    kind: Kind
    axis: int | None = None
    positions: Positions = "all"

    def __post_init__(self) -> None:
        axis = self.axis
        if self.positions not in get_args(Positions):
            raise ConfigError(
                f"Expected release_positions as 'all' or 'last', got {self.positions!r}."
            )
        if self.positions == "last" and axis != -1:
            raise ConfigError(
                "Expected axis=-1 beside release_positions='last', which is for language models "
                f"(rows, positions, classes); got axis={axis!r}."
            )
        if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool) or axis == 0):
            raise ConfigError(
                f"Expected axis as an integer other than 0 (the examples), got {axis!r}."
            )

    @property
    def has_positions(self) -> bool:
        """Returns whether an answer may consist of several rows."""
        return self.axis is not None or self.kind in ROW_KINDS

    @property
    def row_kind(self) -> Kind:
        """Returns the kind of the rows that ``opened`` returns."""
        return ROW_KINDS.get(self.kind, self.kind)

    def opened(self, output: object) -> Tensor:
        """Returns the model's numbers as rows in at least float32, or raises AnswerError.

        Shapes: floating point -> (N, *positions, classes) float32 or float64.
        Errors: AnswerError for None, another type or shape, integers or complex numbers, fewer than
            two classes, NaN or Inf, and declared probabilities that are not a distribution. The
            message names the first invalid row and, for a distribution, its sum, but never values.
            ConfigError inside torch.jit.trace and the like (``refuse_recording``).
        """
        refuse_recording("what is released")
        return self.rows_of(self._of_right_form(output))

    def rows_of(self, tensor: Tensor) -> Tensor:
        """Does the same for a tensor whose form was right before: only its values are checked."""
        if self.positions == "last":
            tensor = tensor[:, -1:]
        if tensor.dtype not in _WIDE:
            tensor = tensor.float()
        tensor = refuse(tensor, self.kind, -1 if self.axis is None else self.axis)
        return tensor if self._is_open else self._with_classes_last(tensor)

    @property
    def _is_open(self) -> bool:
        """Returns whether rows are what the model gives."""
        return self.axis is None and self.kind in ("logits", "embeddings")

    def _of_right_form(self, output: object) -> Tensor:
        tensor = _tensor_of(output)
        if not tensor.is_floating_point():
            raise AnswerError(
                f"Expected floating-point {self.kind}, got {tensor.dtype}. Shield the function "
                "that returns scores, such as a classifier's predict_proba, not its labels."
            )
        if tensor.is_meta:
            raise AnswerError("The model returned a tensor without data (device meta).")
        self._require_axis(tensor)
        return tensor

    def refuse_mistaken(self, output: object, vectors: UnitVectors) -> None:
        """Raises AnswerError if the first outputs look like probabilities or embeddings.

        Probabilities, positive and with rows that sum to 1 up to rounding, would get a second
        softmax. Embeddings, all of length 1, have no classes.
        vectors: rows seen so far; done if the user states that they are logits.
        """
        if self.kind != "logits" or is_captured():
            return
        rows = self.opened(output)
        if looks_like_probabilities(rows):
            raise AnswerError(
                "The model's logits seem to be probabilities: no number is below 0 and every row "
                "sums to 1. Pass outputs='probabilities', or return the values before the softmax."
            )
        if isinstance(output, Tensor) and vectors.found_in(rows, output.dtype):
            axis = "" if self.axis is None else f", axis={self.axis}"
            noise = f"sn.GaussianNoise({noise_beside(rows.shape[-1])})"
            raise AnswerError(
                "The model's answers seem to be embeddings: every row is a vector of length 1. "
                "Treating them as class scores would ruin them; nothing was released. Use "
                f"sn.Shield(model, sn.ClipNorm(1.0), {noise}, outputs='embeddings'{axis}), or pass "
                "outputs='logits' if they are class scores. With public rows, sn.harden(model, "
                f"outputs='embeddings'{axis}, calibrate=public_rows) measures what it needs."
            )

    def sizes(self, shape: torch.Size) -> tuple[int, tuple[int, ...]]:
        """Returns the number of classes and the positions of an output of this shape."""
        if self.kind in ROW_KINDS:
            return 2, tuple(shape[1:])
        if self.kind == "values":
            return math.prod(shape[1:]), ()
        classes = -1 if self.axis is None else self.axis
        position = classes % len(shape)
        places = tuple(shape[1:position]) + tuple(shape[position + 1 :])
        return shape[position], places[1:] if self.positions == "last" else places

    def closed(self, answers: Tensor, shape: torch.Size, released: Kind) -> Tensor:
        """Converts defended rows back to the form of the model's output.

        shape: of the output. released: the kind of ``answers``; labels have no class axis.
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

    def _require_axis(self, tensor: Tensor) -> None:
        if self.kind in ROW_KINDS or self.kind == "values":
            _require_examples(tensor, self.kind)
        else:
            _require_class_axis(tensor, self.kind, self.axis)
            if self.positions == "last" and tensor.dim() != 3:
                raise AnswerError(
                    "Expected answers of shape (rows, positions, classes) for "
                    f"release_positions='last', got shape {tuple(tensor.shape)}: leave it out."
                )

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
    """Returns the answers; raises AnswerError if a defense returned NaN or Inf."""
    if (fit := lowered_checks()) is not None:
        if not answers.is_floating_point():
            return answers
        fit.append((answers - answers).sum(-1) == 0)
        return torch.where(fit[-1].unsqueeze(-1), answers, 1 / answers.shape[-1])
    if is_captured():
        checked: Tensor = answers + _zero_unless_overflowing(answers, str(stage))
        return checked
    _refuse_overflow(answers, stage)
    return answers


def refuse(tensor: Tensor, kind: str, axis: int) -> Tensor:
    """Returns the tensor; raises AnswerError for rows that cannot be defended."""
    if (fit := lowered_checks()) is not None:
        fit.append(_fit(tensor, kind, axis))
        return _with_harmless_rows(tensor, fit[-1], kind, axis)
    if is_captured():
        checked: Tensor = tensor + _zero_unless_refused(tensor, kind, axis)
        return checked
    _refuse(tensor, kind, axis)
    return tensor


def _fit(tensor: Tensor, kind: str, axis: int) -> Tensor:
    """Returns which rows may be defended. Shapes: tensor -> (N, *positions) bool."""
    if kind == "probabilities":
        return ((tensor.sum(axis) - 1).abs() <= _SUM_TOLERANCE) & (tensor.amin(axis) >= 0)
    if kind == "binary_probabilities":
        return (tensor >= 0) & (tensor <= 1)
    zero = tensor - tensor  # NaN where a number is not finite
    if kind == "values" and tensor.dim() > 1:
        zero = zero.flatten(1).sum(1)
    elif kind in _WITH_CLASSES:
        zero = zero.sum(axis)
    return zero == 0


def _with_harmless_rows(tensor: Tensor, fit: Tensor, kind: str, axis: int) -> Tensor:
    """Replaces rows that are not fit by a constant, which is a distribution where one is needed."""
    if kind in _WITH_CLASSES:
        return torch.where(fit.unsqueeze(axis), tensor, 1 / tensor.shape[axis])
    fit = fit.reshape(-1, *[1] * (tensor.dim() - 1)) if fit.dim() < tensor.dim() else fit
    return torch.where(fit, tensor, 0.5)


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
            f"{stage} returned NaN or Inf; nothing was released. The model's scores are too large "
            "for this setting: check the model's inputs, or choose a milder setting."
        )


def _refuse(tensor: Tensor, kind: str, axis: int) -> None:
    if kind == "probabilities":
        total = tensor.sum(axis)
        # Written so that NaN and Inf are wrong too, in a single pass.
        right = ((total - 1).abs() <= _SUM_TOLERANCE) & (tensor.amin(axis) >= 0)
        if not right.all():
            _require_finite_rows(tensor)
            row = _first(~right)
            raise AnswerError(
                f"Row {row} of {len(tensor)} is not a distribution: it sums to "
                f"{_worst_total(total[row])}. Expected probabilities >= 0 that sum to 1; if the "
                "model returns logits, use outputs='logits'."
            )
    elif kind == "binary_probabilities":
        right = (tensor >= 0) & (tensor <= 1)
        if not right.all():
            _require_finite_rows(tensor)
            raise AnswerError(
                f"Row {_first(~right)} of {len(tensor)} has numbers outside [0, 1]. Expected "
                "probabilities; if the model returns logits, use outputs='binary_logits'."
            )
    elif not _finite(tensor):
        _require_finite_rows(tensor)


def _finite(scores: Tensor) -> bool:
    # One pass: NaN and Inf never leave a sum; a finite sum that overflows is looked at again.
    if type(scores) is Tensor and scores.is_cpu and scores.numel() <= _MAX_PLAIN:
        total = sum(scores.detach().numpy().ravel().tolist())
    else:
        total = scores.sum().item()
    return math.isfinite(total) or bool(torch.isfinite(scores).all())


def _require_finite_rows(tensor: Tensor) -> None:
    broken = ~torch.isfinite(tensor)
    if broken.any():
        raise AnswerError(
            f"The model returned NaN or Inf in row {_first(broken)} of {len(tensor)}; nothing was "
            "released. Check the input, or run the model in a wider float dtype."
        )


def _first(wrong: Tensor) -> int:
    return int(wrong.nonzero()[0, 0])


def _worst_total(totals: Tensor) -> str:
    flat = totals.flatten()
    return f"{float(flat[(flat - 1).abs().argmax()]):.3g}"


def _tensor_of(output: object) -> Tensor:
    if output is None:
        raise AnswerError(
            "The model returned None. Expected a tensor (rows, classes): "
            "does its forward end with a return?"
        )
    if not isinstance(output, Tensor):
        raise AnswerError(
            f"Expected the answer to be a tensor, got {type(output).__name__}. "
            "Name the field that contains it, such as outputs={'logits': 'logits'}."
        )
    if type(output) is not Tensor and not is_captured():
        return output.as_subclass(Tensor)  # a subclass may hold more than numbers
    return output


def _require_examples(tensor: Tensor, kind: str) -> None:
    if tensor.dim() == 0 or 0 in tensor.shape[1:]:
        raise AnswerError(
            f"Expected {kind} of shape (rows,) or (rows, ...), got shape {tuple(tensor.shape)}."
        )


def _require_class_axis(tensor: Tensor, kind: str, axis: int | None) -> None:
    """Raises AnswerError where there is no axis of classes, and says how to name it."""
    shape, rank = tuple(tensor.shape), tensor.dim()
    if axis is None and rank > 2:
        raise AnswerError(
            f"The model's {kind} have shape {shape}: pass the class axis, axis=1 for a "
            "segmentation (rows, classes, height, width), axis=-1 for a language model "
            "(rows, tokens, classes)."
        )
    position = -1 if axis is None else axis
    if rank < 2 or not -rank < position < rank:
        wanted = "" if axis is None else f" with axis={axis}"
        raise AnswerError(
            f"Expected scores of shape (rows, classes){wanted}, got shape {shape}. If one record "
            "was asked about, ask about a batch of one (x.unsqueeze(0)). "
            "For one number per row use outputs='binary_logits' or 'values'."
        )
    if tensor.shape[position] < (1 if kind == "embeddings" else 2) or 0 in shape[1:]:
        raise AnswerError(
            f"Expected scores of shape (rows, classes) with at least 2 classes, got shape {shape}."
            " For one number per row use outputs='binary_logits' or 'values'."
        )
