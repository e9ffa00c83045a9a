"""How the model of a hardened folder is made, as ``model.json`` says it."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Literal, get_args

import torch
from torch import Tensor

from shieldnet.core.errors import ConfigError, DataError
from shieldnet.files.documents import parse_json
from shieldnet.outputs.nested import leaves
from shieldnet.shipping.parts import GRAPHS, MODEL, ONNX, PROGRAM, WEIGHTS, written

Holds = Literal["model", "shield"]
"""Whether the answers of a graph are the bare model's, or those that a shield has released."""

SCHEMA = "shieldnet.model/1"
_HASH = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[^./\\\0][^/\\\0]{0,199}")
_ENDINGS = {ONNX: ".onnx", PROGRAM: ".pt2"}
_MAX_CHARACTERS = 500
_MAX_INPUTS = 1000


@dataclass(frozen=True)
class Input:
    """Says what one argument of the model looks like; None stands for the rows of a batch."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Description:
    """Says how a model is made and what it is.

    file: that holds it, weights or a graph. source: ``package.module:factory`` that makes the model
    of the weights, or what the graph's file was called; empty where nobody said it. output: of a
    graph with several. kind: of its class. answers: the kind of its outputs. model and weights:
    hashes of it as reports name it (``weights_hash``) and of its tensors alone (``tensors_hash``).
    inputs: what it was asked as an example. graphs: by file, what holds a whole graph.
    """

    file: str
    source: str
    kind: str
    answers: str
    model: str
    weights: str | None = None
    output: str = ""
    inputs: tuple[Input, ...] = ()
    graphs: Mapping[str, Holds] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = (self.source, self.kind, self.answers, self.output)
        if not all(isinstance(text, str) and len(text) <= _MAX_CHARACTERS for text in texts):
            raise DataError(f"{MODEL}: source, class, answers and output are short texts.")
        if self.file not in (WEIGHTS, *GRAPHS):
            raise DataError(f"{MODEL} names the file {self.file!r:.80} as the model's.")
        hashes = (self.model, *(() if self.weights is None else (self.weights,)))
        if not all(isinstance(one, str) and _HASH.fullmatch(one) for one in hashes):
            raise DataError(f"{MODEL} has no hashes of the model and its weights.")
        if (self.weights is None) == (self.file == WEIGHTS):
            raise DataError(f"{MODEL}: weights have a hash, and a graph has none of its own.")
        known = all(
            name in GRAPHS and holds in get_args(Holds) for name, holds in self.graphs.items()
        )
        if not known or (self.file in GRAPHS) != ("model" in self.graphs.values()):
            raise DataError(f"{MODEL} says of its graphs neither model nor shield.")
        if self.file in GRAPHS and not (
            self.graphs.get(self.file) == "model"
            and _FILE_NAME.fullmatch(self.source)
            and self.source.endswith(_ENDINGS[self.file])
        ):
            raise DataError(f"{MODEL} names no file ending in {_ENDINGS[self.file]} as its source.")

    def written(self) -> bytes:
        """Returns it as JSON."""
        return written({"schema": SCHEMA, **asdict(self), "graphs": dict(self.graphs)})

    @classmethod
    def read(cls, content: bytes) -> "Description":
        """Reads ``model.json``; raises DataError for anything else."""
        document = parse_json(content, MODEL, "description of a model")
        if document.pop("schema", None) != SCHEMA:
            raise DataError(f"Expected schema {SCHEMA} in {MODEL}.")
        inputs, graphs = document.get("inputs"), document.get("graphs")
        names = {one.name for one in fields(cls)}
        if document.keys() != names or not (isinstance(inputs, list) and isinstance(graphs, dict)):
            raise DataError(f"Expected {', '.join(sorted(names))} in {MODEL}.")
        if len(inputs) > _MAX_INPUTS:
            raise DataError(f"{MODEL} has {len(inputs)} inputs.")
        document["inputs"] = tuple(map(_input, inputs))
        return cls(**document)


def _input(document: object) -> Input:
    if isinstance(document, dict) and document.keys() == {"name", "shape", "dtype"}:
        name, shape, dtype = document["name"], document["shape"], document["dtype"]
        texts = isinstance(name, str) and isinstance(dtype, str)
        if texts and isinstance(shape, list) and all(map(_is_size, shape)):
            return Input(name, tuple(shape), dtype)
    raise DataError(f"{MODEL} has an input that is not name, shape and dtype.")


def _is_size(size: object) -> bool:
    return size is None or (isinstance(size, int) and not isinstance(size, bool) and size >= 0)


def inputs_of(example: object) -> tuple[Input, ...]:
    """Describes an example: a tensor or an array, a tuple of arguments or a dict of named ones."""
    described = []
    for path, leaf in leaves(example):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise ConfigError(f"Expected an example of tensors or arrays, got {type(leaf)}.")
        value = leaf if isinstance(leaf, Tensor) else torch.as_tensor(leaf)
        shape = (None, *value.shape[1:]) if value.dim() else ()
        dtype = str(value.dtype).removeprefix("torch.")
        described.append(Input(".".join(path), shape, dtype))
    return tuple(described)
