"""What is true at every position of an answer: the next token, a pixel's class."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shieldnet.core.errors import DataError
from shieldnet.data.examples import Examples
from shieldnet.shield.settings import Extent

IGNORED = -100
"""The label of a position that does not count, as in torch's cross-entropy."""
_TOKENS = ("input_ids", "tokens")
MASK = "attention_mask"
"""Names the input that says which tokens count."""


@dataclass(frozen=True)
class Truth:
    """Holds the true class of every position, and which positions count.

    Shapes: labels (rows, *positions) int64, counted the same, bool.
    """

    labels: Tensor
    counted: Tensor

    @classmethod
    def of(
        cls,
        examples: Examples,
        extent: Extent,
        padding: int | None = None,
    ) -> "Truth":
        """Reads the labels of a set; without any, those of a text are its next tokens.

        padding: the token that fills up short texts; where the inputs have an attention_mask, what
        it leaves out does not count.
        Errors: DataError for labels of another shape, for classes that the model does not have, and
            for records of which no position counts.
        """
        if examples.labels is None:
            labels = _next_tokens(examples, extent.positions, padding)
        else:
            labels = _given(examples, extent.positions)
        truth = cls(labels, labels != IGNORED)
        truth._require(examples, extent.classes)
        return truth

    @staticmethod
    def following(tokens: Tensor) -> Tensor:
        """Returns the token after every token, ``IGNORED`` after the last. Shapes: (rows, n)."""
        return torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=IGNORED)

    def _require(self, examples: Examples, classes: int) -> None:
        empty = ~self.counted.flatten(1).any(1)
        if empty.any():
            raise DataError(
                f"Expected a label at one position of every record at least, got none in "
                f"{int(empty.sum())} of the {len(empty)} {examples.name} (first: row "
                f"{int(empty.nonzero()[0])}). A text takes two tokens; labels of {IGNORED} do not "
                "count. Leave these records out."
            )
        known = self.labels[self.counted]
        if int(known.min()) < 0 or int(known.max()) >= classes:
            what = "tokens" if examples.labels is None else "labels"
            raise DataError(
                f"Expected {what} of the {examples.name} from 0 to {classes - 1}, which are the "
                f"model's classes, or {IGNORED} where a position does not count; got "
                f"{int(known.min())} to {int(known.max())}."
            )


def _given(examples: Examples, positions: tuple[int, ...]) -> Tensor:
    assert examples.labels is not None  # noqa: S101  # the caller looked
    labels, wanted = examples.labels, (len(examples), *positions)
    if labels.shape != wanted:
        raise DataError(
            f"Expected a label at every position of the {examples.name}, shape {wanted}, got "
            f"{tuple(labels.shape)}. Positions that do not count are {IGNORED}; a causal language "
            "model's labels may be left out: they are its next tokens."
        )
    tokens = tokens_of(examples, positions)
    known = labels != IGNORED
    if tokens is not None and known.any() and torch.equal(labels[known], tokens[known]):
        raise DataError(
            f"The labels of the {examples.name} are the tokens of their own positions. Expected "
            "the class that each answer is about: a causal language model's answer is about the "
            "next token. Leave the labels out, and every answer is held to the next token."
        )
    return labels


def tokens_of(examples: Examples, positions: tuple[int, ...]) -> Tensor | None:
    """Returns the token of every position; None where the inputs are no texts.

    Shapes: -> (rows, length) int64.
    """
    columns = token_columns(examples, positions)
    return None if columns is None else examples.inputs.flatten(1)[:, columns["tokens"]].long()


def holds_texts(examples: Examples) -> bool:
    """Returns whether inputs are named as those of a text are: input_ids, attention_mask."""
    packing = examples.packing
    return packing is not None and not {*_TOKENS, MASK}.isdisjoint(packing.names)


def token_columns(examples: Examples, positions: tuple[int, ...]) -> dict[str, slice] | None:
    """Finds where a row has its tokens, and its attention_mask where it has one; None for no text.

    Tokens are whole numbers, one a position: of several inputs ``input_ids`` or ``tokens``, or else
    the first that fits.
    """
    if len(positions) != 1:
        return None
    if examples.packing is None:
        is_text = not examples.inputs.is_floating_point() and examples.inputs.shape[1:] == positions
        return {"tokens": slice(0, positions[0])} if is_text else None
    packing, places, start = examples.packing, dict[str, slice](), 0
    parts = zip(packing.shown_names, packing.shapes, packing.dtypes, packing.sizes, strict=True)
    for name, shape, dtype, size in parts:
        if shape == positions and (name == MASK or not dtype.is_floating_point):
            places[name] = slice(start, start + size)
        start += size
    texts = [name for name in (*_TOKENS, *places) if name in places and name != MASK]
    if not texts:
        return None
    mask = {MASK: places[MASK]} if MASK in places else {}
    return {"tokens": places[texts[0]], **mask}


def with_tokens(examples: Examples, positions: tuple[int, ...], tokens: Tensor) -> Examples:
    """Returns the set with other tokens. Shapes: tokens as ``tokens_of`` returns them."""
    columns = token_columns(examples, positions)
    assert columns is not None  # noqa: S101  # the caller has its tokens
    rows = examples.inputs.clone()
    rows[:, columns["tokens"]] = tokens.to(rows)
    return replace(examples, inputs=rows)


def _next_tokens(examples: Examples, positions: tuple[int, ...], padding: int | None) -> Tensor:
    tokens = tokens_of(examples, positions)
    if tokens is None or len(positions) != 1:
        raise DataError(
            f"Expected labels at every position of the {examples.name}, shape "
            f"{(len(examples), *positions)}: pass {examples.name}=(inputs, labels). Only a text's "
            "can be left out: they are its next tokens."
        )
    read = torch.ones_like(tokens, dtype=torch.bool)
    columns = token_columns(examples, positions) or {}
    if MASK in columns:
        read = examples.inputs[:, columns[MASK]].bool()
    if padding is not None:
        read = read & (tokens != padding)
    labels = torch.full_like(tokens, IGNORED)
    labels[:, :-1] = tokens[:, 1:].where(read[:, 1:] & read[:, :-1], labels[:, 1:])
    return labels
