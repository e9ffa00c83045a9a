"""A body as it came, read into tensors; its form is checked before memory is given."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json
from torch import Tensor

from shieldnet.serving.app.datatypes import DATATYPES, OF_DTYPE
from shieldnet.serving.app.protocol import (
    MAX_RANK,
    InferRequest,
    InputTensor,
    Message,
    PredictRequest,
)
from shieldnet.serving.app.refusals import Refused, malformed
from shieldnet.shipping.description import TensorFacts

_OTHER_QUESTIONS = ("classification", "shared_memory_", "sequence_")
"""Parameters, by how they begin, that ask for what this server does not do."""

_MOST_NAMES = 10_000
"""Lists, names and separators of a request beside its numbers."""
_MOST_LISTS = 2**17
"""Lists of inputs that have an axis of any size."""

_FIELDS = {*InferRequest.model_fields, *InputTensor.model_fields, *PredictRequest.model_fields}

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Form:
    """Says what a request has to look like: the model's inputs, its outputs by name, the limit.

    ids: how many ids there are, by the input that holds them, where the model says it.
    """

    inputs: tuple[TensorFacts, ...]
    outputs: tuple[str, ...]
    max_rows: int
    name: str = "model"
    version: str = "1"
    ids: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """Holds what a client asks.

    inputs: in the model's order, each with ``rows`` rows. outputs: names of those wanted; binary:
    of those that are wanted as bytes.
    """

    inputs: Mapping[str, Tensor]
    rows: int
    id: str | None = None
    outputs: tuple[str, ...] = ()
    binary: frozenset[str] = frozenset()

    def digest(self) -> bytes:
        """Returns a hash of all inputs, whatever form they came in."""
        hashed = hashlib.sha256()
        for name, value in self.inputs.items():
            kind = OF_DTYPE[str(value.dtype).removeprefix("torch.")]
            hashed.update(f"{name!r}{kind.name}{list(value.shape)}".encode())
            hashed.update(kind.bytes_of(value))
        return hashed.digest()


def read_infer(body: bytes, header_length: str | None, form: Form) -> Asked:
    """Reads a request of the protocol.

    header_length: how many bytes of the body are JSON, as the header says it; None for all.
    Errors: Refused with status 400 for whatever is not a request to this model.
    """
    view = memoryview(body)
    cut = len(body) if header_length is None else _length(header_length, len(body))
    request = _message(InferRequest, view[:cut], form)
    _refuse_other_questions(request.parameters)
    for given, own in ((request.model_name, form.name), (request.model_version, form.version)):
        if given not in (None, own):
            raise malformed("Expected model_name and model_version as in the address, or neither.")
    by_name = {one.name: one for one in request.inputs}
    _require_names([one.name for one in request.inputs], [one.name for one in form.inputs])
    rows = request.inputs[0].shape[0]
    for facts in form.inputs:
        _require_form(by_name[facts.name], facts, rows, form.max_rows)
    pieces = _pieces(request.inputs, view[cut:])
    inputs = {one.name: _numbers(by_name[one.name], pieces) for one in form.inputs}
    _require_ids(inputs, form)
    names, binary = _wanted(request, form)
    return Asked(inputs, rows, request.id, names, binary)


def read_predict(body: bytes, form: Form) -> Asked:
    """Reads a request of the plain route. Errors: as ``read_infer``."""
    given = _message(PredictRequest, memoryview(body), form).inputs
    if isinstance(given, list):
        if len(form.inputs) > 1:
            names = ", ".join(one.name for one in form.inputs)
            raise malformed(f"Expected inputs by name, as the model has several: {names}.")
        given = {form.inputs[0].name: given}
    _require_names(list(given), [one.name for one in form.inputs])
    first = len(given[form.inputs[0].name])
    inputs = {}
    for facts in form.inputs:
        shape = _shape_of(given[facts.name])
        _require_shape(facts, shape, first, form.max_rows)
        numbers = _flat(facts.name, given[facts.name], shape)
        inputs[facts.name] = OF_DTYPE[facts.dtype].of_numbers(numbers, shape)
    _require_ids(inputs, form)
    return Asked(inputs, first, None, form.outputs)


def _require_few(text: bytes, form: Form) -> None:
    """Refuses what has more lists, names or numbers than a request can need.

    A parser makes an object of each, and stops everybody meanwhile.
    """
    rows = [(form.max_rows, *one.shape[1:]) for one in form.inputs]
    lists = sum(_product(one[:axis]) for one in rows for axis in range(len(one)))
    most = {
        b"[": _MOST_NAMES + (_MOST_LISTS if math.isinf(lists) else lists),
        b",": _MOST_NAMES + sum(map(_product, rows)),
        b'"': _MOST_NAMES,
        b"{": _MOST_NAMES,
    }
    for sign, count in most.items():
        if text.count(sign) > count:
            words = f"Expected at most {form.max_rows} rows, and no lists and names beside theirs."
            raise Refused(413, "size", words)


def _product(sizes: Sequence[int | None]) -> float:
    return math.prod(math.inf if size is None else size for size in sizes)


def _message(kind: type[M], text: memoryview, form: Form) -> M:
    """Parses a message; what is wrong with it is said by its place, never by its content."""
    content = bytes(text)
    _require_few(content, form)
    try:
        document = from_json(content)
    except ValueError:
        raise malformed(f"Expected {kind.__name__} as JSON; it is not.") from None
    try:
        return kind.model_validate(document)
    except ValidationError as wrong:
        first = wrong.errors(include_url=False, include_context=False, include_input=False)[0]
        steps = (str(step) for step in first["loc"] if isinstance(step, int) or step in _FIELDS)
        place = ".".join(steps)
        raise malformed(f"Expected {kind.__name__} as JSON; {place or 'it'} is not.") from None


def _length(text: str, limit: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= limit):
        raise malformed("Expected the header's length of JSON as a number within the body.")
    return int(text)


def _refuse_other_questions(*several: Mapping[str, Any] | None) -> None:
    if any(name.startswith(_OTHER_QUESTIONS) for names in several for name in names or ()):
        words = "classification, shared memory and sequences are not served"
        raise malformed(f"Expected tensors in and out: {words}.")


def _require_names(given: Sequence[str], names: Sequence[str]) -> None:
    if sorted(given) != sorted(names):
        raise malformed(f"Expected each input of the model once: {', '.join(names)}.")


def _require_ids(inputs: Mapping[str, Tensor], form: Form) -> None:
    """Refuses ids that the model has no row for, before anything is charged."""
    for name, count in form.ids.items():
        if int(inputs[name].min()) < 0 or int(inputs[name].max()) >= count:
            raise malformed(f"Expected whole numbers from 0 to {count - 1} in {name}.")


def _require_form(given: InputTensor, facts: TensorFacts, rows: int, max_rows: int) -> None:
    kind = OF_DTYPE[facts.dtype]
    if given.datatype != kind.name:
        other = "" if given.datatype in DATATYPES else "; BYTES and unknown types are not served"
        raise malformed(f"Expected the datatype {kind.name} of {facts.name}{other}.")
    _require_shape(facts, tuple(given.shape), rows, max_rows)
    _refuse_other_questions(given.parameters)


def _require_shape(facts: TensorFacts, shape: tuple[int, ...], rows: int, max_rows: int) -> None:
    fits = len(shape) == len(facts.shape) and all(
        size == wanted if wanted else size >= 1
        for size, wanted in zip(shape, facts.shape, strict=True)
    )
    if not fits:
        wanted = [-1 if size is None else size for size in facts.shape]
        raise malformed(f"Expected the shape {wanted} of {facts.name}, -1 for any size from 1.")
    if shape[0] != rows:
        raise malformed("Expected as many rows in each input.")
    if rows > max_rows:
        raise Refused(413, "size", f"Expected at most {max_rows} rows.")


def _pieces(inputs: Sequence[InputTensor], data: memoryview) -> dict[str, memoryview]:
    """Cuts the bytes behind the JSON into those of each input, none left over."""
    pieces, start = {}, 0
    for one in inputs:
        size = (one.parameters or {}).get("binary_data_size")
        if size is None:
            continue
        needed = math.prod(one.shape) * DATATYPES[one.datatype].size
        if one.data is not None or type(size) is not int or size != needed:
            raise malformed(
                f"Expected no data beside the binary_data_size of {one.name}, which has to be "
                "the bytes of its shape."
            )
        pieces[one.name] = data[start : start + size]
        start += size
    if start != len(data):
        raise malformed("Expected as many bytes behind the JSON as binary_data_size says.")
    return pieces


def _numbers(given: InputTensor, pieces: Mapping[str, memoryview]) -> Tensor:
    kind, shape = DATATYPES[given.datatype], tuple(given.shape)
    if given.name in pieces:
        return kind.of_bytes(pieces[given.name], shape)
    if given.data is None:
        raise malformed(f"Expected data or binary_data_size for {given.name}.")
    is_flat = len(given.data) == math.prod(shape) and not any(
        isinstance(one, list) for one in given.data
    )
    return kind.of_numbers(given.data if is_flat else _flat(given.name, given.data, shape), shape)


def _flat(name: str, data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Returns the numbers of nested lists that have exactly a shape, in row-major order."""
    level = data
    if len(data) == shape[0]:
        for size in shape[1:]:
            if not all(isinstance(one, list) and len(one) == size for one in level):
                break
            level = [number for one in level for number in one]
        else:
            return level
    raise malformed(f"Expected data of {name} as one list of its numbers, or nested as its shape.")


def _shape_of(data: Any) -> tuple[int, ...]:
    """Returns the shape that the first entries of nested lists have."""
    shape: list[int] = []
    while isinstance(data, list):
        shape.append(len(data))
        if not data or len(shape) > MAX_RANK:
            break
        data = data[0]
    return tuple(shape)


def _wanted(request: InferRequest, form: Form) -> tuple[tuple[str, ...], frozenset[str]]:
    """Returns the names of the outputs that are wanted, and of those wanted as bytes."""
    default = _flag(request.parameters, "binary_data_output", default=False)
    if not request.outputs:
        return form.outputs, frozenset(form.outputs if default else ())
    names = tuple(one.name for one in request.outputs)
    if len(set(names)) != len(names) or not set(names) <= set(form.outputs):
        raise malformed(f"Expected outputs of the model, each once: {', '.join(form.outputs)}.")
    _refuse_other_questions(*(one.parameters for one in request.outputs))
    return names, frozenset(
        one.name for one in request.outputs if _flag(one.parameters, "binary_data", default=default)
    )


def _flag(parameters: Mapping[str, Any] | None, name: str, *, default: bool) -> bool:
    value = (parameters or {}).get(name, default)
    if not isinstance(value, bool):
        raise malformed(f"Expected {name} to be true or false.")
    return value
