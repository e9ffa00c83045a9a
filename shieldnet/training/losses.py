"""Losses with one value per record, as clipping each record's gradient requires."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from shieldnet.core.checks import choice
from shieldnet.core.errors import AnswerError, ConfigError, DataError
from shieldnet.outputs.nested import leaves

Loss = Callable[[object, Tensor], Tensor]
"""Takes a model's output and labels; returns (records,), one loss per record."""

KINDS = ("logits", "probabilities", "binary_logits", "values")
IGNORED = -100
"""The label of a position to ignore, such as the padding of a text."""


@dataclass(frozen=True)
class Criterion:
    """Computes the loss for a kind of output: (binary) cross-entropy or squared error.

    Losses of positions (pixels, tokens) are averaged within their record; positions labeled -100
    are ignored, except with values. axis: of the classes; by default the one that labels lack.
    smoothing: share of a label that is spread over all classes; it may be negative.
    Shapes: scores (records, classes) or with positions, labels the same without classes.
    """

    outputs: str = "logits"
    axis: int | None = None
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        choice("outputs", self.outputs, KINDS)

    def __call__(self, output: object, labels: Tensor) -> Tensor:
        scores = scores_of(output)
        if self.outputs == "values":
            return _mean((scores.reshape(labels.shape) - labels).square())
        counted = labels != IGNORED
        if self.outputs == "binary_logits":
            yes = labels.clamp_min(0).to(scores.dtype)
            wanted = yes * (1 - self.smoothing) + self.smoothing / 2
            losses = F.binary_cross_entropy_with_logits(
                scores.reshape(labels.shape), wanted, reduction="none"
            )
            return _mean(losses * counted, counted)
        scores = scores.movedim(self._axis_of(scores, labels), 1)
        if self.outputs == "probabilities":
            log_p = scores.clamp_min(1e-12).log()
        else:
            log_p = scores.log_softmax(1)
        losses = F.nll_loss(log_p, labels, reduction="none", ignore_index=IGNORED)
        if self.smoothing:
            spread = -log_p.mean(1) * counted
            losses = (1 - self.smoothing) * losses + self.smoothing * spread
        return _mean(losses, counted)

    def hits(self, output: object, labels: Tensor) -> Tensor | None:
        """Returns the share of correct positions of each record; None for values.

        NaN for a record whose positions are all ignored. Shapes: -> (records,).
        """
        scores = scores_of(output)
        if self.outputs == "values":
            return None
        if self.outputs == "binary_logits":
            right = (scores.reshape(labels.shape) > 0) == (labels > 0.5)
        else:
            right = scores.argmax(self._axis_of(scores, labels)) == labels
        counted = (labels != IGNORED).flatten(1) if labels.dim() > 1 else labels[:, None] != IGNORED
        right = right.reshape(counted.shape) & counted
        return right.sum(1) / counted.sum(1)

    def require_fit(self, scores: Tensor, labels: Tensor, all_labels: Tensor) -> None:
        """Raises DataError if labels do not fit the scores of the same records.

        all_labels: labels of all records, whose range is checked.
        """
        if self.outputs in ("values", "binary_logits"):
            if scores.numel() != labels.numel():
                raise DataError(
                    f"Expected a label for each of the {self.outputs} {tuple(scores.shape)}, got "
                    f"labels of shape {tuple(labels.shape)}."
                )
            if self.outputs == "binary_logits":
                _require_yes_or_no(all_labels)
            return
        if scores.dim() != labels.dim() + 1:
            raise DataError(
                f"Expected labels with one axis less than scores of shape {tuple(scores.shape)}, "
                f"got shape {tuple(labels.shape)}. Flatten labels of shape (records, 1); for a "
                "regression pass outputs='values', for binary labels outputs='binary_logits'."
            )
        classes = scores.shape[self._axis_of(scores, labels)]
        if classes < 2:
            raise DataError(
                "Expected scores of at least two classes, got one number per record: pass "
                "outputs='binary_logits' or 'values'."
            )
        counted = all_labels[all_labels != IGNORED]
        if len(counted) and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
            raise DataError(
                f"Expected labels from 0 to {classes - 1}, or {IGNORED} to ignore a position; got "
                f"{int(counted.min())} to {int(counted.max())}."
            )

    def _axis_of(self, scores: Tensor, labels: Tensor) -> int:
        if labels.is_floating_point():
            raise ConfigError(
                f"Expected integer labels for {self.outputs}, got {labels.dtype}. For a regression "
                "pass outputs='values'."
            )
        if self.axis is not None:
            return self.axis
        if scores.dim() == 2:
            return 1
        shape = tuple(scores.shape)
        fits = [
            axis
            for axis in range(1, len(shape))
            if shape[:axis] + shape[axis + 1 :] == tuple(labels.shape)
        ]
        if len(fits) != 1:
            raise ConfigError(
                f"Scores of shape {shape} and labels of shape {tuple(labels.shape)} do not show "
                "which axis holds the classes: pass axis=1 for a segmentation, axis=-1 for a "
                "language model."
            )
        return fits[0]


@dataclass(frozen=True)
class OwnLoss:
    """Wraps a user's loss and checks that it returns one number per record."""

    loss: Callable[..., Tensor]

    def __call__(self, output: object, labels: Tensor) -> Tensor:
        inputs = scores_of(output) if isinstance(self.loss, nn.Module) else output
        losses = self.loss(inputs, labels)
        if not isinstance(losses, Tensor) or losses.dim() == 0 or len(losses) != len(labels):
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ConfigError(
                f"Expected a loss for each of {len(labels)} records, got {shape}. A loss that is "
                "summed or averaged over a batch mixes its records: return one number per record "
                "(reduction='none')."
            )
        return _mean(losses)


def _require_yes_or_no(labels: Tensor) -> None:
    counted = labels[labels != IGNORED]
    wrong = (counted < 0) | (counted > 1)
    if wrong.any():
        raise DataError(
            "Expected labels of binary_logits from 0 to 1, or -100 to ignore a position; got "
            f"{counted[wrong][0].item()!r}. For classes pass outputs='logits', for a regression "
            "outputs='values'."
        )


def weighted_mean(loss: object) -> bool:
    """Returns whether a loss is a weighted mean, whose total weight depends on the whole batch."""
    return getattr(loss, "reduction", None) == "mean" and getattr(loss, "weight", None) is not None


def as_loss(loss: Callable[..., Tensor] | None, outputs: str, axis: int | None) -> Loss:
    """Returns a loss with one value per record; a torch criterion is copied without reduction.

    The class weights of a weighted mean are divided by their mean, so that a learning rate keeps
    its meaning.
    """
    if loss is None:
        return Criterion(outputs, axis)
    if outputs != "logits" or axis is not None:
        raise ConfigError("A custom loss interprets the output itself: omit outputs and axis.")
    if not callable(loss):
        raise ConfigError(f"Expected loss(output, labels), got {type(loss).__name__}.")
    if getattr(loss, "reduction", "none") != "none":
        averaged = weighted_mean(loss)
        loss = copy.deepcopy(loss)
        if averaged:
            loss.weight = loss.weight / loss.weight.mean()  # type: ignore[attr-defined]  # it has one
        loss.reduction = "none"  # type: ignore[attr-defined]  # a criterion of torch has it
    return OwnLoss(loss)


def scores_of(output: object) -> Tensor:
    """Finds the scores in an output: a tensor, the field ``logits``, or the only float tensor."""
    if isinstance(output, Tensor):
        return output
    tensors = {
        path: leaf
        for path, leaf in leaves(output)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    }
    if ("logits",) in tensors:
        return tensors["logits",]
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    raise AnswerError(
        f"Expected an output with a tensor, or with a field named logits; got "
        f"{type(output).__name__} with {len(tensors)} tensors. Pass a loss=, which gets the output "
        "unchanged."
    )


def _mean(losses: Tensor, counted: Tensor | None = None) -> Tensor:
    """Averages over the positions that count; a record without positions stays unchanged."""
    if losses.dim() == 1:
        return losses
    if counted is None:
        return losses.flatten(1).mean(1)
    return losses.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp_min(1)
