"""Examples that an audit works on: checked once, when they come in."""

from collections.abc import Hashable, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shieldnet.core.errors import ConfigError, DataError
from shieldnet.data.loaders import of_loader
from shieldnet.data.packing import Packing, packed, several_of
from shieldnet.data.tensors import TEXTS, as_tensor, require_even, stacked


def require_finite(what: str, values: Tensor) -> None:
    """Raises DataError for NaN or Inf, with the rows that have it and the first place.

    what: the values, and among which they are. Shapes: values (rows, ...).
    """
    broken = ~torch.isfinite(values)
    if not broken.any():
        return
    first = broken.nonzero()[0].tolist()
    count = int(broken.flatten(1).any(1).sum()) if values.dim() > 1 else int(broken.sum())
    column = {1: "", 2: f", column {first[-1]}"}.get(values.dim(), f", place {tuple(first[1:])}")
    raise DataError(
        f"Expected finite {what}: in {count} of {len(values)} rows (first: row {first[0]}{column}, "
        "counted from 0). Drop these rows, or fill in what is missing."
    )


@dataclass(frozen=True)
class Examples:
    """Holds inputs and, where they are known, their labels.

    packing: where a model's several inputs are in a row, None for one input. has_targets: whether
    labels are the numbers that a regression is to give, not classes.
    Shapes: inputs (rows, ...), labels (rows,) int64, or (rows, *positions) of a model that answers
    at positions, or None; targets (rows,) or (rows, outputs).
    """

    name: str
    inputs: Tensor
    labels: Tensor | None = None
    packing: Packing | None = None
    has_targets: bool = False

    def __post_init__(self) -> None:
        if self.inputs.dim() == 0 or len(self.inputs) == 0:
            raise DataError(f"Expected at least one row of {self.name}, got none.")
        if self.inputs.dim() < 2 or self.inputs.is_complex():
            raise DataError(
                f"Expected real {self.name} of shape (rows, ...), got {self.inputs.dtype} of shape "
                f"{tuple(self.inputs.shape)}."
            )
        require_finite(f"inputs, got NaN or Inf among the {self.name}", self.inputs)
        if self.labels is not None and self.has_targets:
            self._require_targets(self.labels)
        elif self.labels is not None:
            self._require_classes(self.labels)

    def _require_targets(self, targets: Tensor) -> None:
        if targets.dim() not in (1, 2) or len(targets) != len(self.inputs) or not targets.numel():
            raise DataError(
                f"Expected targets of the {self.name} of shape ({len(self.inputs)},) or "
                f"({len(self.inputs)}, outputs), got {tuple(targets.shape)}."
            )
        if targets.is_complex():
            raise DataError(f"Expected real targets for the {self.name}, got {targets.dtype}.")
        require_finite(f"targets, got NaN or Inf among those of the {self.name}", targets)

    def _require_classes(self, labels: Tensor) -> None:
        if labels.shape[:1] != self.inputs.shape[:1]:
            raise DataError(
                f"Expected one label for each of the {len(self.inputs)} {self.name}, "
                f"got labels of shape {tuple(labels.shape)}."
            )
        require_finite(f"labels, got NaN or Inf among those of the {self.name}", labels)
        if labels.is_floating_point() or labels.is_complex():
            raise DataError(
                f"Expected whole-number labels for the {self.name}, got {labels.dtype}. Number "
                "classes from 0 (labels.long()); the targets of a regression are read where the "
                "shield has outputs='values'."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    @cached_property
    def content(self) -> str:
        """Names the inputs by what they hold: answers are kept by it, not by the set's name."""
        return rows_hash(self.inputs, None, self.packing)

    def shuffled(self, order: Tensor) -> "Examples":
        """Returns the rows in another order. Shapes: order (rows,)."""
        labels = None if self.labels is None else self.labels[order]
        return replace(self, inputs=self.inputs[order], labels=labels)

    def in_own_form(self, rows: Tensor | slice = slice(None)) -> tuple[Any, Tensor | None]:
        """Returns inputs and labels of some rows as they came: several inputs as several."""
        inputs, packing = self.inputs[rows], self.packing
        labels = None if self.labels is None else self.labels[rows]
        return (inputs if packing is None else packing.inputs(inputs)), labels

    @property
    def described(self) -> str:
        """Writes the type and shape of the inputs, and the names of several."""
        if self.packing is not None:
            return self.packing.described
        return f"{self.inputs.dtype}, shape {tuple(self.inputs.shape)}"

    def fingerprint(self) -> str:
        """Returns a hash of inputs and labels that names the data without holding any."""
        return rows_hash(self.inputs, self.labels, self.packing)

    def require_labels(self, classes: int) -> Tensor:
        """Returns the labels, or raises DataError where they are missing or out of range."""
        if self.labels is None:
            raise DataError(f"Expected (inputs, labels) for the {self.name}, got inputs alone.")
        if self.labels.dim() != 1:
            raise DataError(
                f"Expected one label for each of the {len(self.inputs)} {self.name}, "
                f"got labels of shape {tuple(self.labels.shape)}."
            )
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= classes:
            from_one = (int(self.labels.min()), int(self.labels.max())) == (1, classes)
            raise DataError(
                f"Expected labels of the {self.name} from 0 to {classes - 1}, got "
                f"{int(self.labels.min())} to {int(self.labels.max())}."
                f"{' Count classes from 0: subtract 1.' if from_one else ''}"
            )
        return self.labels

    def require_targets(self, outputs: int) -> Tensor:
        """Returns the targets of a regression, or raises DataError where they do not fit it.

        outputs: numbers in an answer. Shapes: -> (rows, outputs) float64.
        """
        if self.labels is None:
            raise DataError(f"Expected (inputs, targets) for the {self.name}, got inputs alone.")
        targets = self.labels.double().reshape(len(self), -1)
        if targets.shape[1] != outputs:
            raise DataError(
                f"Expected targets of the {self.name} as wide as the model's answers, {outputs} a "
                f"row, got shape {tuple(self.labels.shape)}. Give what the model was trained to "
                f"give, or leave targets out: {self.name}=inputs."
            )
        return targets


@dataclass(frozen=True)
class Group:
    """Names a subgroup of the members and of the nonmembers.

    Shapes: members and nonmembers (rows,) bool, of the audit's sets in their order.
    """

    name: str
    members: Tensor
    nonmembers: Tensor


@dataclass(frozen=True)
class Canaries:
    """Holds records made to be memorized: chance decided which of them trained the model.

    kind: what makes them odd. planted trained the model, held_out did not. copies: how often each
    planted record is in the training data.
    """

    kind: str
    planted: Examples
    held_out: Examples
    copies: int = 1


def as_examples(value: object, name: str, *, targets: bool | None = False) -> Examples:
    """Reads examples from (inputs, labels), from inputs alone, or from a Dataset or DataLoader.

    Arrays and tensors are taken as they are; a Dataset is read once, row by row. Several inputs are
    a dict by the names of the model's arguments, with labels beside or in it, or a tuple; they are
    put into one row a record.

    targets: whether labels are the targets of a regression; None takes fractions for targets.
    Errors: DataError for anything else, for no rows, NaN, or labels that do not fit.
    """
    if isinstance(value, Examples):
        has_targets = value.has_targets if targets is None else targets
        return replace(value, name=name, has_targets=has_targets)
    value = of_loader(value, name)

    def examples(inputs: Tensor, labels: object, packing: Packing | None = None) -> Examples:
        own = None if labels is None else _labels(labels, name)
        is_fraction = own is not None and own.is_floating_point()
        return Examples(name, inputs, own, packing, is_fraction if targets is None else targets)

    if (several := several_of(value, needs_labels=False)) is not None:
        rows, packing = packed(several[0], name)
        return examples(rows, several[1], packing)
    if isinstance(value, tuple | list) and len(value) == 2:
        return examples(as_tensor(value[0], name), value[1])
    if isinstance(value, Tensor | np.ndarray) or hasattr(value, "iloc"):
        return examples(as_tensor(value, name), None)
    if isinstance(value, Sized) and hasattr(value, "__getitem__"):
        require_even(value, name)
        return examples(*pairs_of(value, name))
    raise DataError(
        f"Expected {name} as (inputs, labels), as inputs or as a Dataset with a length; "
        f"got {type(value).__name__}."
    )


def raw_bytes(tensor: Tensor) -> bytes:
    """Returns a tensor's content, of any type and on any device, for a hash."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes()


def rows_hash(inputs: Tensor, labels: Tensor | None, packing: Packing | None = None) -> str:
    """Returns a hash of inputs and labels that names the data without holding any.

    packing: tells rows of several inputs from others that hold the same numbers.
    """
    form = "" if packing is None else repr(packing)
    digest = sha256(f"{(inputs.dtype, tuple(inputs.shape))}{form}".encode())
    for tensor in (inputs, labels):
        if tensor is not None:
            digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def reference_rows(members: Examples, nonmembers: Examples, auxiliary: Examples | None) -> Tensor:
    """Returns the inputs that units are measured on, whichever set a record is in.

    They are the adversary's own, or else both sets together: a unit that is measured on one set
    tells it from the other.
    """
    if auxiliary is not None:
        return auxiliary.inputs
    return torch.cat([members.inputs, nonmembers.inputs])


def require_disjoint(first: Examples, second: Examples, unread: Sequence[str] = ()) -> None:
    """Raises DataError where two sets differ in shape or share a row.

    unread: names of columns that the model does not read, in which equal rows may differ.
    """
    require_one_shape(first, second)
    seen = set(row_bytes(first))
    shared = [row for row, content in enumerate(row_bytes(second)) if content in seen]
    if shared:
        raise DataError(
            f"{len(shared)} of the {len(second)} {second.name} are also {first.name} (first: row "
            f"{shared[0]}). What is measured between overlapping sets means nothing. "
            f"{_how_to_part(unread)}"
        )


def _how_to_part(unread: Sequence[str]) -> str:
    """Tells how sets that share rows are made disjoint."""
    if not unread:
        return (
            "Take them out of both with duplicates='drop', or divide the data by distinct records "
            "with shieldnet.split."
        )
    return (
        f"They can differ only in columns that the model does not read ({', '.join(unread)}), so "
        "to the model they are the same records. Take them out of both with duplicates='drop'."
    )


def require_one_shape(first: Examples, second: Examples) -> None:
    """Raises DataError where the inputs of two sets differ in shape."""
    if first.packing != second.packing:
        kinds = [
            part.packing.described if part.packing else "one tensor" for part in (first, second)
        ]
        raise DataError(
            f"Expected {first.name} and {second.name} with the same inputs, got {kinds[0]} and "
            f"{kinds[1]}. Texts of all sets are padded to one length."
        )
    if first.inputs.shape[1:] != second.inputs.shape[1:]:
        raise DataError(
            f"Expected {first.name} and {second.name} of one shape, got "
            f"{tuple(first.inputs.shape[1:])} and {tuple(second.inputs.shape[1:])}."
        )
    if first.labels is None or second.labels is None or not first.has_targets:
        return
    if first.labels.shape[1:] != second.labels.shape[1:]:
        raise DataError(
            f"Expected targets of {first.name} and {second.name} of one shape, got "
            f"{tuple(first.labels.shape)} and {tuple(second.labels.shape)}."
        )


def split(
    data: object, shares: Sequence[float] = (0.5, 0.5), *, seed: int = 0
) -> tuple[tuple[Any, Tensor | None], ...]:
    """Divides data at random into parts that share no record.

    Records whose inputs are equal are drawn together, by one draw: tables have many, and what is
    measured between parts that share some means nothing.

    data: (inputs, labels), inputs, or a Dataset; several inputs stay several. shares: of the
    distinct records, for every part; their sum is 1. The same seed divides the same way.
    Shapes: -> (inputs, labels) for each share; labels None where there were none.
    Errors: ConfigError for shares, DataError for data and for a part that would be empty.
    """
    examples = as_examples(data, "data", targets=None)
    parts = drawn_parts(row_bytes(examples), shares, seed)
    return tuple(examples.in_own_form(rows) for rows in parts)


def drawn_parts(
    records: Sequence[Hashable], shares: Sequence[float], seed: int
) -> tuple[Tensor, ...]:
    """Draws the part of every distinct record, and lists the rows of each part.

    Errors: ConfigError for shares, DataError for a part that would be empty.
    """
    if len(shares) < 2 or not all(0 < share < 1 for share in shares):
        raise ConfigError(f"Expected two or more shares between 0 and 1, got {tuple(shares)}.")
    if abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"Expected shares whose sum is 1, got {sum(shares):g}.")
    numbers: dict[Hashable, int] = {}
    record = torch.tensor([numbers.setdefault(row, len(numbers)) for row in records])
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    ends = [round(sum(shares[: number + 1]) * len(numbers)) for number in range(len(shares))]
    part_of = torch.bucketize(order, torch.tensor(ends), right=True)[record]
    parts = tuple((part_of == number).nonzero().flatten() for number in range(len(shares)))
    if not all(len(rows) for rows in parts):
        raise DataError(
            f"{len(numbers)} distinct records are too few for shares of {tuple(shares)}."
        )
    return parts


def row_bytes(examples: Examples) -> list[bytes]:
    """Returns the content of every row of inputs: equal for equal rows of any type."""
    return row_bytes_of(examples.inputs)


def row_bytes_of(inputs: Tensor) -> list[bytes]:
    """Returns the content of every row. Shapes: (rows, ...)."""
    rows = inputs.detach().cpu().to(torch.float64).flatten(1).numpy()
    return [row.tobytes() for row in rows + 0.0]  # + 0.0: -0.0 and 0.0 are one value


def pairs_of(dataset: object, name: str) -> tuple[Tensor, Tensor]:
    """Reads a Dataset of (input, label) pairs once, row by row; raises DataError for any other."""
    rows = [dataset[index] for index in range(len(dataset))]  # type: ignore[index,arg-type]  # a Dataset
    if not rows:
        raise DataError(f"Expected at least one row of {name}, got none.")
    others = [row for row in rows if not (isinstance(row, tuple | list) and len(row) == 2)]
    if others:
        if isinstance(others[0], str) and not isinstance(dataset, str):
            raise DataError(f"Expected numbers for the {name}, got {TEXTS}")
        is_row = isinstance(others[0], tuple | list)
        got = f"{len(others[0])} values" if is_row else type(others[0]).__name__
        raise DataError(
            f"Expected a Dataset of (input, label) pairs for the {name}, got a row of {got}. With "
            "several inputs, make every row ((first, second), label), or a dict with 'labels'; "
            "with several labels, (input, torch.stack([first, second])), and train with a loss of "
            "both: finetune(..., loss=...)."
        )
    inputs, labels = zip(*rows, strict=True)
    return stacked(inputs, "inputs"), stacked(labels, "labels")


def _labels(value: object, name: str) -> Tensor:
    """Widens whole numbers, of which torch can hardly compare the unsigned kinds."""
    try:
        labels = as_tensor(value, name)
    except DataError as words:
        raise DataError(
            f"Expected whole numbers as labels of the {name}, got {type(value).__name__} of what "
            "is none. Number words once for all sets: classes, numbers = numpy.unique(words, "
            "return_inverse=True)."
        ) from words
    whole = not (labels.is_floating_point() or labels.is_complex())
    return labels.to(torch.int64) if whole else labels
