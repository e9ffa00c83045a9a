"""The messages of the Open Inference Protocol, version 2, and of the plain route."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_RANK = 8
MAX_TENSORS = 100
MAX_SIZE = 2**31 - 1
BINARY_HEADER = "Inference-Header-Content-Length"
"""The header that says how many bytes of a body are JSON; numbers in binary follow."""


def _require_few(given: Any) -> Any:
    """Refuses an object of more names than any message has, before each is an error of its own."""
    if isinstance(given, dict) and len(given) > MAX_TENSORS:
        raise ValueError(f"Expected at most {MAX_TENSORS} names, got {len(given)}.")
    return given


Name = Annotated[str, Field(min_length=1, max_length=200)]
Parameters = Annotated[
    dict[str, bool | int | float | str],
    Field(max_length=MAX_TENSORS),
    BeforeValidator(_require_few),
]
Shape = Annotated[
    list[Annotated[int, Field(ge=1, le=MAX_SIZE)]],
    Field(min_length=1, max_length=MAX_RANK, fail_fast=True),
]


class Message(BaseModel):
    """Holds the fields that a message has, and no others; what is wrong is found in bounded time.

    No list that a client sends gives more than one error, and no object more than a few hundred.
    """

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())
    _few = model_validator(mode="before")(_require_few)


class InputTensor(Message):
    """Describes an input: its numbers are ``data``, or follow as ``binary_data_size`` bytes."""

    name: Name
    shape: Shape
    datatype: Name
    parameters: Parameters | None = None
    data: list[Any] | None = None


class RequestedOutput(Message):
    """Names an output that is wanted, and with ``binary_data`` in which form."""

    name: Name
    parameters: Parameters | None = None


class InferRequest(Message):
    """Asks the model; without ``outputs`` for all of them.

    model_name, model_version: those of the address, which KServe's client repeats.
    """

    model_name: Name | None = None
    model_version: Name | None = None
    id: Annotated[str, Field(max_length=200)] | None = None
    parameters: Parameters | None = None
    inputs: list[InputTensor] = Field(min_length=1, max_length=MAX_TENSORS, fail_fast=True)
    outputs: (
        Annotated[list[RequestedOutput], Field(max_length=MAX_TENSORS, fail_fast=True)] | None
    ) = None


class OutputTensor(Message):
    """Holds an output: its numbers in row-major order, or the count of its bytes that follow."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, int] | None = None
    data: list[Any] | None = None


class InferResponse(Message):
    """Answers a request."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class PredictRequest(Message):
    """Asks the model with rows of nested lists, of several inputs by name."""

    inputs: list[Any] | Annotated[dict[str, list[Any]], BeforeValidator(_require_few)]


class PredictResponse(Message):
    """Answers with a row for each row, of several outputs by name."""

    outputs: list[Any] | dict[str, list[Any]]


class TensorMetadata(Message):
    """Describes an input or output of the model; -1 in its shape stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Message):
    """Describes the model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(Message):
    """Describes the server."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(Message):
    """Says that the server runs."""

    live: bool


class ServerReady(Message):
    """Says that the server can charge and answer."""

    ready: bool


class ModelReady(Message):
    """Says that the model can be asked."""

    name: str
    ready: bool


class Amounts(Message):
    """Counts what a budget limits; null for what it does not."""

    bits: float | None
    mu: float | None
    queries: int | None


class BudgetLeft(Message):
    """Says what is left of one budget, and when it renews, in seconds since the epoch."""

    window: str
    renews_at: int | None
    limits: Amounts
    left: Amounts


class Budgets(Message):
    """Says what a client has left of its own budgets."""

    budgets: list[BudgetLeft]


class Refusal(Message):
    """Says why there is no answer."""

    error: str
