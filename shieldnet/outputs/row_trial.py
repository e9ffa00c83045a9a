"""Tests whether a model answers every row independently of its batch and deterministically.

The cost that a certificate counts for a row is wrong if other rows, or chance, change its answer.
No list of layers shows that: an exported program, a compiled function or a custom module can do
anything. So the first queries are repeated, in batches whose other rows are changed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from shieldnet.core.errors import AnswerError, ConfigError

Scores = Callable[[Any], list[Tensor]]
"""Extracts from a model's output the tensors that must have a row for each row of the batch."""

_SAME_SIZE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_OTHER_SIZE = {torch.float64: 1e-3, torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""How far an answer may change, as a share of the answers' range: the order of summation depends on
the batch size, and some models compute sums in half precision."""


class _Unknown(Exception):
    """Raised for an argument that cannot be copied and rearranged."""


class Asked(NamedTuple):
    """Holds a copy of a model's arguments, made before the model can change them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: int

    def at(self, places: Tensor | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns a new copy of the arguments with these rows, or with all rows for None."""
        change = _copied if places is None else (lambda value: _taken(value, places, self.rows))
        args = tuple(map(change, self.args))
        return args, {name: change(value) for name, value in self.kwargs.items()}

    def differs(self) -> bool:
        """Returns whether any two rows differ."""
        return any(_rows_differ(value, self.rows) for value in (*self.args, *self.kwargs.values()))


class RowTrial:
    """Remembers how a shield's model was tested, and repeats the test where necessary.

    It tests the first call, then the first one with two different rows, then every batch with more
    than twice as many rows as any before; and starts over if modules change their training mode.
    All other calls cost one comparison. Copies of a shield for other devices share it.

    one_by_one: whether the model only ever gets one row at a time. enough: number of rows up to
    which a batch is not tested. mode: of the modules at the last test. refused: the reason, if rows
    changed each other; it persists until the mode changes.
    """

    def __init__(self, one_by_one: bool = False) -> None:
        self.one_by_one = one_by_one
        self.enough = 0
        self.mode: object = None
        self.refused: str | None = None

    def __deepcopy__(self, memo: object) -> "RowTrial":
        return RowTrial(self.one_by_one)  # a copied model is tested anew

    def on_example(self, shield: nn.Module, example: Any) -> None:
        """Runs a shield on an example, to test rows and learn sizes; discards the answer.

        Errors: ConfigError if the example cannot show whether rows are independent.
        """
        if isinstance(example, Mapping):
            shield(**example)
        else:
            shield(*(example if isinstance(example, tuple) else (example,)))
        self.require_tried()

    def require_tried(self) -> None:
        """Raises ConfigError if the example does not show whether rows are independent."""
        if self.enough < 2 and not self.one_by_one:
            raise ConfigError(
                "Expected an example of at least two different rows, to test whether rows change "
                "each other. Pass a few real ones: example=inputs[:8]."
            )

    def due(self, args: tuple[Any, ...], kwargs: dict[str, Any], mode: object) -> Asked | None:
        """Returns a copy of the arguments if this call must be tested, else None.

        Errors: AnswerError if the model was refused before.
        """
        if mode != self.mode:
            self.enough, self.mode, self.refused = 0, mode, None
        if self.refused is not None:
            raise AnswerError(self.refused)
        rows = _rows_of(args) or _rows_of(tuple(kwargs.values()))
        if rows <= self.enough:
            return None
        try:
            asked = Asked(tuple(map(_copied, args)), _copied(kwargs), rows)
        except _Unknown:
            return None
        return asked if self.enough == 0 or asked.differs() else None

    def run(self, model: nn.Module, asked: Asked, output: Any, scores: Scores) -> None:
        """Runs the model again and compares the answers.

        output: its output for ``asked``. Buffers and torch's generators are restored afterwards.
        Errors: AnswerError if an answer changed.
        """
        wanted = [answer.detach().clone() for answer in scores(output)]
        with _put_back(model):
            question = _Question(_without_ranks(model), asked, wanted, scores)
            try:
                question.again()
                aligned = bool(wanted) and all(len(answer) == asked.rows for answer in wanted)
                if aligned and asked.rows > 1:
                    question.with_other_rows()
            except _Moved as moved:
                self.refused = str(moved)
                raise AnswerError(self.refused) from None
            if aligned and not self.one_by_one:
                question.in_other_sizes()
        known = 2 * asked.rows if asked.rows > 1 and asked.differs() else 1
        self.enough = max(self.enough, known)


class _Moved(Exception):
    """Raised if an answer changed in a batch of the same size, which rounding cannot explain."""


class _Question(NamedTuple):
    model: nn.Module
    asked: Asked
    wanted: list[Tensor]
    scores: Scores

    def again(self) -> None:
        args, kwargs = self.asked.at(None)
        answers = [answer.detach() for answer in self.scores(self.model(*args, **kwargs))]
        row = self._first_moved(self.wanted, answers, _SAME_SIZE)
        if row is not None:
            raise _Moved(
                f"The model answers row {row} of {self.asked.rows} differently when it is asked "
                "the same again; nothing was released. Look for dropout, sampling or noise: call "
                "model.eval() (before torch.export or torch.jit.trace for a program). To add noise "
                "whose privacy cost is counted, use a defense of the shield."
            )

    def with_other_rows(self) -> None:
        """Runs batches of the same size, in which some rows stay and the others change."""
        rows = torch.arange(self.asked.rows)
        half = self.asked.rows // 2
        head, tail = rows[:half], rows[half:]
        reverse = rows.flip(0)
        changes = [
            (reverse, rows, "the rows changed their order"),
            (torch.cat([head, head[tail % half]]), head, "only other rows changed"),
            (torch.cat([tail[head % len(tail)], tail]), tail, "only other rows changed"),
        ]
        for places, kept, change in changes:
            answers = self._answers(places)
            if answers is None:
                continue
            picked = reverse if places is reverse else kept
            row = self._first_moved(
                [answer[kept] for answer in self.wanted],
                [answer[picked] for answer in answers],
                _SAME_SIZE,
            )
            if row is not None:
                raise _Moved(_mixed(int(kept[row]), self.asked.rows, change))

    def in_other_sizes(self) -> None:
        """Runs batches without some of the rows; a model may refuse these sizes."""
        rows = torch.arange(self.asked.rows)
        half = self.asked.rows // 2
        parts = [rows[:half], rows[half:]] if half else [torch.tensor([0, 0])]
        for places in [*parts, *([rows[:1]] if half > 1 else [])]:
            answers = self._answers(places)
            if answers is None:
                continue
            wanted = [answer[places] for answer in self.wanted]
            row = self._first_moved(wanted, answers, _OTHER_SIZE)
            if row is not None:
                change = "it was asked without the others" if half else "it was asked twice at once"
                raise AnswerError(_mixed(int(places[row]), self.asked.rows, change))

    def _answers(self, places: Tensor) -> list[Tensor] | None:
        args, kwargs = self.asked.at(places)
        try:
            answers = self.scores(self.model(*args, **kwargs))
        except Exception:  # a model may refuse a size or an order, with any exception
            return None
        return [answer.detach() for answer in answers]

    def _first_moved(
        self,
        wanted: Sequence[Tensor],
        answers: Sequence[Tensor],
        tolerances: Mapping[torch.dtype, float],
    ) -> int | None:
        if len(wanted) != len(answers):
            return 0
        for whole, before, now in zip(self.wanted, wanted, answers, strict=True):
            if before.shape != now.shape:
                return 0
            tolerance = max(tolerances.get(kind, 0.0) for kind in self._floats(whole))
            held = whole.double()
            span = (held.max() - held.min()) + 1e-2 * held.abs().max() if held.numel() else 0.0
            changed = ~((before.double() - now.double()).abs() <= tolerance * span)  # NaN changed
            if changed.any():
                return int(changed.nonzero()[0, 0]) if changed.dim() else 0
        return None

    def _floats(self, answer: Tensor) -> set[torch.dtype]:
        """Lists the float dtypes in which the model may have computed an answer."""
        kinds = {answer.dtype, *(parameter.dtype for parameter in self.model.parameters())}
        device = answer.device.type
        if torch.is_autocast_enabled(device):
            kinds.add(torch.get_autocast_dtype(device))
        return kinds


def _mixed(row: int, rows: int, change: str) -> str:
    return (
        f"Rows of a batch change each other: the answer to row {row} of {rows} changed when "
        f"{change}; nothing was released. Look for a normalization over the batch; for BatchNorm "
        "in training mode: call model.eval() (before torch.export or torch.jit.trace for a "
        "program); or for int8 with one scale for all activations of a batch: quantize the weights "
        "alone, or activations by row (torchao's Int8DynamicActivationInt8WeightConfig). Or run "
        "rows one by one: Shield(..., micro_batch=1)."
    )


def _without_ranks(model: nn.Module) -> nn.Module:
    """Unwraps a model that synchronizes with other processes, which do not run these tests."""
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return model


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Restores buffers and torch's generators afterwards."""
    saved = [(buffer, buffer.clone()) for buffer in model.buffers() if not buffer.is_meta]
    devices = {
        tensor.device.index or 0
        for tensor in (*model.parameters(), *(buffer for buffer, _ in saved))
        if tensor.device.type == "cuda"
    }
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            yield
        finally:
            for buffer, before in saved:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def _rows_of(values: Sequence[Any]) -> int:
    """Returns the number of rows of the first value with rows, or 0 if there is none."""
    for value in values:
        if type(value) is Tensor and value.dim():
            rows = value.shape[0]
        elif isinstance(value, Tensor | np.ndarray):
            rows = len(value) if value.ndim else 0
        elif isinstance(value, Mapping):
            rows = _rows_of(list(value.values()))
        elif isinstance(value, list | tuple):
            rows = _rows_of(value) or (len(value) if _is_column(value) else 0)
        else:
            rows = value.shape[0] if _is_sparse(value) or hasattr(value, "iloc") else 0
        if rows:
            return rows
    return 0


def _is_sparse(value: object) -> bool:
    """Returns whether a value is a scipy sparse matrix, as text pipelines return."""
    return hasattr(value, "tocsr")


def _is_column(value: Sequence[Any]) -> bool:
    """Returns whether a list has one word or number per row."""
    return isinstance(value, list) and all(
        isinstance(entry, str | bytes | int | float) for entry in value
    )


def _copied(value: Any) -> Any:
    return _changed(value, lambda tensor: tensor.detach().clone(), lambda table: table.copy(), None)


def _taken(value: Any, places: Tensor, rows: int) -> Any:
    def of_tensor(tensor: Tensor) -> Tensor:
        has_rows = tensor.dim() > 0 and len(tensor) == rows
        return tensor.detach()[places.to(tensor.device)] if has_rows else tensor.detach().clone()

    def of_table(table: Any) -> Any:
        if not (table.ndim and len(table) == rows):
            return table.copy()
        picked = places.numpy()
        return table.iloc[picked] if hasattr(table, "iloc") else table[picked]

    return _changed(value, of_tensor, of_table, (places.tolist(), rows))


def _changed(
    value: Any,
    of_tensor: Callable[[Tensor], Tensor],
    of_table: Callable[[Any], Any],
    picked: tuple[list[int], int] | None,
) -> Any:
    """Rebuilds an argument: tensors, arrays, tables, words and numbers in lists and dicts."""
    if isinstance(value, Tensor):
        return of_tensor(value)
    if isinstance(value, np.ndarray) or hasattr(value, "iloc"):
        return of_table(value)
    if _is_sparse(value):
        matrix = value.tocsr(copy=True)
        return matrix[picked[0]] if picked and matrix.shape[0] == picked[1] else matrix
    if value is None or isinstance(value, str | bytes | int | float | complex | np.generic):
        return value
    if isinstance(value, torch.dtype | torch.device):
        return value
    if type(value) in (list, tuple):
        if picked and len(value) == picked[1] and _is_column(value):
            return [value[row] for row in picked[0]]
        return type(value)(_changed(child, of_tensor, of_table, picked) for child in value)
    if type(value) is dict:
        return {key: _changed(child, of_tensor, of_table, picked) for key, child in value.items()}
    raise _Unknown


def _rows_differ(value: Any, rows: int) -> bool:
    if isinstance(value, Tensor):
        return value.dim() > 0 and len(value) == rows and bool((value != value[:1]).any())
    if isinstance(value, np.ndarray):
        return value.ndim > 0 and len(value) == rows and bool((value != value[:1]).any())
    if hasattr(value, "iloc"):
        return len(value) == rows and len(value.drop_duplicates()) > 1
    if _is_sparse(value):
        matrix = value.tocsr()
        return matrix.shape[0] == rows and bool((matrix - matrix[[0] * rows]).nnz)
    if isinstance(value, Mapping):
        return any(_rows_differ(child, rows) for child in value.values())
    if isinstance(value, list | tuple):
        if _is_column(value):
            return len(value) == rows and len(set(value)) > 1
        return any(_rows_differ(child, rows) for child in value)
    return False
