"""Examples that an audit works on: checked once, when they come in."""

from collections.abc import Hashable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from shieldnet.core.errors import ConfigError, DataError

STACKED = (
    "Such a model is class Stacked(torch.nn.Module), whose forward(self, rows) returns "
    "self.model(input_ids=rows[:, 0], attention_mask=rows[:, 1]), for "
    "rows = torch.stack([input_ids, attention_mask], 1)."
)
"""What to do where one tensor of inputs is needed; tests run its lines."""


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

    Shapes: inputs (rows, ...), labels (rows,) int64 or None.
    """

    name: str
    inputs: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.inputs.dim() == 0 or len(self.inputs) == 0:
            raise DataError(f"Expected at least one row of {self.name}, got none.")
        if self.inputs.dim() < 2 or self.inputs.is_complex():
            raise DataError(
                f"Expected real {self.name} of shape (rows, ...), got {self.inputs.dtype} of shape "
                f"{tuple(self.inputs.shape)}."
            )
        require_finite(f"inputs, got NaN or Inf among the {self.name}", self.inputs)
        if self.labels is None:
            return
        if self.labels.shape != self.inputs.shape[:1]:
            raise DataError(
                f"Expected one label for each of the {len(self.inputs)} {self.name}, "
                f"got labels of shape {tuple(self.labels.shape)}."
            )
        require_finite(f"labels, got NaN or Inf among those of the {self.name}", self.labels)
        if self.labels.is_floating_point() or self.labels.is_complex():
            raise DataError(
                f"Expected whole-number labels for the {self.name}, got {self.labels.dtype}."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    @cached_property
    def content(self) -> str:
        """Names the inputs by what they hold: answers are kept by it, not by the set's name."""
        return rows_hash(self.inputs, None)

    def shuffled(self, order: Tensor) -> "Examples":
        """Returns the rows in another order. Shapes: order (rows,)."""
        labels = None if self.labels is None else self.labels[order]
        return Examples(self.name, self.inputs[order], labels)

    def fingerprint(self) -> str:
        """Returns a hash of inputs and labels that names the data without holding any."""
        return rows_hash(self.inputs, self.labels)

    def require_labels(self, classes: int) -> Tensor:
        """Returns the labels, or raises DataError where they are missing or out of range."""
        if self.labels is None:
            raise DataError(f"Expected (inputs, labels) for the {self.name}, got inputs alone.")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= classes:
            from_one = (int(self.labels.min()), int(self.labels.max())) == (1, classes)
            raise DataError(
                f"Expected labels of the {self.name} from 0 to {classes - 1}, got "
                f"{int(self.labels.min())} to {int(self.labels.max())}."
                f"{' Count classes from 0: subtract 1.' if from_one else ''}"
            )
        return self.labels


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
    planted record stands in the training data.
    """

    kind: str
    planted: Examples
    held_out: Examples
    copies: int = 1


def as_examples(value: object, name: str) -> Examples:
    """Reads examples from (inputs, labels), from inputs alone, or from a torch Dataset.

    Arrays and tensors are taken as they are; a Dataset is read once, row by row.
    Errors: DataError for anything else, for no rows, NaN, or labels that do not fit.
    """
    if isinstance(value, Examples):
        return replace(value, name=name)
    if isinstance(value, Mapping):
        raise _several(name, value)
    if isinstance(value, tuple | list) and len(value) == 2:
        if _are_several(value[0]):
            raise _several(name, value[0])
        return Examples(name, as_tensor(value[0], name), _labels(value[1], name))
    if isinstance(value, Tensor | np.ndarray) or hasattr(value, "iloc"):
        return Examples(name, as_tensor(value, name))
    if isinstance(value, Sized) and hasattr(value, "__getitem__"):
        inputs, labels = pairs_of(value, name)
        return Examples(name, inputs, _labels(labels, name))
    raise DataError(
        f"Expected {name} as (inputs, labels), as inputs or as a Dataset with a length; "
        f"got {type(value).__name__}."
    )


def _several(name: str, given: object) -> DataError:
    kind = "a mapping" if isinstance(given, Mapping) else "several"
    return DataError(
        f"Expected {name} with one tensor of inputs, got {kind}, which attacks cannot read. Have "
        f"the model take one tensor that holds them. {STACKED}"
    )


def _are_several(inputs: object) -> bool:
    """Says whether a model's inputs are a dict or a tuple of tensors, as of words and a mask."""
    if isinstance(inputs, tuple) and len(inputs) > 1:
        return all(isinstance(one, Tensor | np.ndarray) and one.ndim for one in inputs)
    return isinstance(inputs, Mapping)


def raw_bytes(tensor: Tensor) -> bytes:
    """Returns a tensor's content, of any type and on any device, for a hash."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes()


def rows_hash(inputs: Tensor, labels: Tensor | None) -> str:
    """Returns a hash of inputs and labels that names the data without holding any."""
    digest = sha256(str((inputs.dtype, tuple(inputs.shape))).encode())
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


def require_disjoint(first: Examples, second: Examples) -> None:
    """Raises DataError where two sets differ in shape or share a row."""
    require_one_shape(first, second)
    seen = set(row_bytes(first))
    shared = [row for row, content in enumerate(row_bytes(second)) if content in seen]
    if shared:
        raise DataError(
            f"{len(shared)} of the {len(second)} {second.name} are also {first.name} (first: row "
            f"{shared[0]}). What is measured between overlapping sets means nothing. Take them out "
            "of both with duplicates='drop', or divide the data by distinct "
            "records with shieldnet.split."
        )


def require_one_shape(first: Examples, second: Examples) -> None:
    """Raises DataError where the inputs of two sets differ in shape."""
    if first.inputs.shape[1:] != second.inputs.shape[1:]:
        raise DataError(
            f"Expected {first.name} and {second.name} of one shape, got "
            f"{tuple(first.inputs.shape[1:])} and {tuple(second.inputs.shape[1:])}."
        )


def split(
    data: object, shares: Sequence[float] = (0.5, 0.5), *, seed: int = 0
) -> tuple[tuple[Tensor, Tensor | None], ...]:
    """Divides data at random into parts that share no record.

    Records whose inputs are equal are drawn together, by one draw: tables have many, and what is
    measured between parts that share some means nothing.

    data: (inputs, labels), inputs, or a Dataset. shares: of the distinct records, for every part;
    their sum is 1. The same seed divides the same way.
    Shapes: -> (inputs, labels) for each share; labels None where there were none.
    Errors: ConfigError for shares, DataError for data and for a part that would be empty.
    """
    examples = as_examples(data, "data")
    return tuple(
        (examples.inputs[rows], None if examples.labels is None else examples.labels[rows])
        for rows in drawn_parts(row_bytes(examples), shares, seed)
    )


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
    first = rows[0][0] if isinstance(rows[0], tuple | list) and rows[0] else rows[0]
    if _are_several(first):
        raise _several(name, first)
    if not all(isinstance(row, tuple | list) and len(row) == 2 for row in rows):
        raise DataError(f"Expected a Dataset of (input, label) pairs for the {name}.")
    columns = zip(*rows, strict=True)
    inputs, labels = (
        torch.stack([as_tensor(value, name) for value in column]) for column in columns
    )
    return inputs, labels


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


def as_tensor(value: object, name: str) -> Tensor:
    """Returns numbers as a tensor without a graph, or raises DataError."""
    try:
        # A table's own index is no part of it.
        numbers = value.to_numpy(copy=True) if hasattr(value, "iloc") else value  # type: ignore[attr-defined]  # pandas'
        return torch.as_tensor(numbers).detach()
    except (TypeError, ValueError, RuntimeError) as unreadable:
        raise DataError(
            f"Expected numbers for the {name}, got {_described(value)}."
        ) from unreadable


def _described(value: object) -> str:
    """Names the columns of a table that are no numbers, and the way that works."""
    kinds = getattr(value, "dtypes", None)
    if not hasattr(kinds, "items"):
        return type(value).__name__
    others = [str(column) for column, kind in kinds.items() if kind.kind not in "iuf"]  # type: ignore[union-attr]  # pandas'
    return (
        f"a table with words, or with what is no plain number, in: {', '.join(others)}. A network "
        "reads numbers: encode these columns; or audit a pipeline that encodes them itself, "
        "sn.harden(pipeline)"
    )
