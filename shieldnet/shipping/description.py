"""How the model of a hardened folder is made, as ``model.json`` says it."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from shieldnet.core.errors import ConfigError, DataError
from shieldnet.files.documents import parse_json
from shieldnet.files.onnx_models import OnnxModel
from shieldnet.files.programs import Program
from shieldnet.outputs.nested import leaves
from shieldnet.shield.settings import ShieldSettings
from shieldnet.shipping.parts import GRAPHS, MODEL, ONNX, PROGRAM, WEIGHTS, written

Holds = Literal["model", "shield"]
"""Whether the answers of a graph are the bare model's, or those that a shield has released."""

SCHEMA = "shieldnet.model/1"
_HASH = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[^./\\\0][^/\\\0]{0,199}")
_ENDINGS = {ONNX: ".onnx", PROGRAM: ".pt2"}
_MAX_CHARACTERS = 500
_MAX_INPUTS = 1000
_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class TensorFacts:
    """Says what a tensor looks like; None in its shape stands for any size, such as a batch's."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def __post_init__(self) -> None:
        _require_texts("a tensor", self.name, self.dtype)


@dataclass(frozen=True)
class Answer:
    """Says of one output of the model what it gives and what the shield releases of it.

    name: of the field; empty for the only output. kind: of the model's numbers. released: the kind
    that a client gets, or ``as it is`` for a field without defenses.
    """

    name: str
    kind: str
    released: str

    def __post_init__(self) -> None:
        _require_texts("an answer", self.name, self.kind, self.released)


@dataclass(frozen=True)
class GraphFacts:
    """Says what a graph holds and, of a shield's, how it is asked.

    weights: hash of the tensors in its model. shield: digest of its settings. inputs: in the order
    of the graph. noise: those of them that no client may feed.
    """

    holds: Holds
    weights: str = ""
    shield: str = ""
    inputs: tuple[TensorFacts, ...] = ()
    outputs: tuple[TensorFacts, ...] = ()
    noise: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        hashes = (self.weights, self.shield)
        is_shield = self.holds == "shield"
        fits = all(_is_hash(one) if is_shield else one == "" for one in hashes)
        if self.holds not in get_args(Holds) or not fits:
            raise DataError(f"{MODEL} says of its graphs neither model nor shield.")
        _require_texts("a graph", *self.noise)


@dataclass(frozen=True)
class Description:
    """Says how a model is made and what it is.

    file: that holds it, weights or a graph. source: ``package.module:factory`` that makes the model
    of the weights, or what the graph's file was called; empty if it is not known. output: of a
    graph with several. kind: of its class. answers: each of its outputs that is released. model and
    weights: hashes of it as reports name it (``weights_hash``) and of its tensors alone
    (``tensors_hash``). inputs: what it was asked as an example. graphs: by file. attributes: few
    digits of hashes of a network's plain attributes, by name, to tell what differs from another.
    """

    file: str
    source: str
    kind: str
    answers: tuple[Answer, ...]
    model: str
    weights: str | None = None
    output: str = ""
    inputs: tuple[TensorFacts, ...] = ()
    graphs: Mapping[str, GraphFacts] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_texts("source, kind or output", self.source, self.kind, self.output)
        if self.file not in (WEIGHTS, *GRAPHS):
            raise DataError(f"{MODEL} names the file {self.file!r:.80} as the model's.")
        hashes = (self.model, *(() if self.weights is None else (self.weights,)))
        if not all(map(_is_hash, hashes)):
            raise DataError(f"{MODEL} has no hashes of the model and its weights.")
        if (self.weights is None) == (self.file == WEIGHTS):
            raise DataError(f"{MODEL}: weights have a hash, and a graph has none of its own.")
        _require_texts("an attribute", *self.attributes, *self.attributes.values())
        of_model = [name for name, graph in self.graphs.items() if graph.holds == "model"]
        if not self.graphs.keys() <= set(GRAPHS) or of_model != [self.file] * (
            self.file != WEIGHTS
        ):
            raise DataError(f"{MODEL} says of its graphs neither model nor shield.")
        if self.file in GRAPHS and not (
            _FILE_NAME.fullmatch(self.source) and self.source.endswith(_ENDINGS[self.file])
        ):
            raise DataError(f"{MODEL} names no file ending in {_ENDINGS[self.file]} as its source.")

    def written(self) -> bytes:
        """Returns it as JSON."""
        return written({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def read(cls, content: bytes) -> "Description":
        """Reads ``model.json``; raises DataError for anything else."""
        document = parse_json(content, MODEL, "description of a model")
        if document.pop("schema", None) != SCHEMA:
            raise DataError(f"Expected schema {SCHEMA} in {MODEL}.")
        document.setdefault("attributes", {})  # folders of the first weeks have none
        if document.keys() != {one.name for one in fields(cls)}:
            raise DataError(
                f"Expected {', '.join(sorted(one.name for one in fields(cls)))} in {MODEL}."
            )
        for name in ("graphs", "attributes"):
            if not isinstance(document[name], dict):
                raise DataError(f"{MODEL} has no table of {name}.")
        document["answers"] = tuple(
            _of(Answer, one) for one in _listed(document["answers"], "answers")
        )
        document["inputs"] = _tensors(document["inputs"])
        document["graphs"] = {name: _graph(one) for name, one in document["graphs"].items()}
        return cls(**document)


_Kind = TypeVar("_Kind", Answer, TensorFacts, GraphFacts)


def _of(kind: type[_Kind], document: object) -> _Kind:
    """Makes a value of the table that holds exactly its fields."""
    names = [one.name for one in fields(kind)]
    if not (isinstance(document, dict) and document.keys() == set(names)):
        raise DataError(f"Expected {', '.join(names)} in {MODEL}.")
    return kind(**document)


def _tensors(listed: object) -> tuple[TensorFacts, ...]:
    found = []
    for one in _listed(listed, "inputs or outputs"):
        shape = one.get("shape") if isinstance(one, dict) else None
        if not (isinstance(shape, list) and all(map(_is_size, shape))):
            raise DataError(f"{MODEL} has an input that is not name, shape and dtype.")
        found.append(_of(TensorFacts, {**one, "shape": tuple(shape)}))
    return tuple(found)


def _graph(document: object) -> GraphFacts:
    if not (
        isinstance(document, dict) and document.keys() == {one.name for one in fields(GraphFacts)}
    ):
        raise DataError(f"{MODEL} says of its graphs neither model nor shield.")
    read = {name: _tensors(document[name]) for name in ("inputs", "outputs")}
    noise = tuple(_listed(document["noise"], "noise"))
    return _of(GraphFacts, {**document, **read, "noise": noise})


def _listed(value: object, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MAX_INPUTS:
        raise DataError(f"{MODEL} has no list of {what}, or a very long one.")
    return value


def _require_texts(what: str, *texts: object) -> None:
    """Raises DataError for what is no short, printable text."""
    for text in texts:
        if not (isinstance(text, str) and len(text) <= _MAX_CHARACTERS and text.isprintable()):
            raise DataError(f"{MODEL}: {what} is described by no short, printable text.")


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _is_size(size: object) -> bool:
    return size is None or (isinstance(size, int) and not isinstance(size, bool) and size >= 0)


def answers_of(settings: ShieldSettings) -> tuple[Answer, ...]:
    """Describes each head that a shield releases, the answer itself first."""
    own = settings.chain
    heads = [Answer(settings.main or "", own.layout.kind, own.release)]
    for name, chain in settings.others.items():
        if chain is None:
            heads.append(Answer(name, "unknown", "as it is"))
        else:
            heads.append(Answer(name, chain.layout.kind, chain.release))
    return tuple(heads)


def inputs_of(example: Any, model: nn.Module) -> tuple[TensorFacts, ...]:
    """Describes an example by the names that the model gives its arguments.

    example: a tensor or an array, a tuple of arguments or a dict of named ones; None for none.
    """
    if example is None:
        return ()
    described = []
    for name, argument in _arguments(example, model).items():
        for path, leaf in leaves(argument):
            if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
                raise ConfigError(f"Expected an example of tensors or arrays, got {type(leaf)}.")
            value = leaf if isinstance(leaf, Tensor) else torch.as_tensor(leaf)
            shape = (None, *value.shape[1:]) if value.dim() else ()
            dtype = str(value.dtype).removeprefix("torch.")
            described.append(TensorFacts(".".join([name, *path]), shape, dtype))
    return tuple(described)


def _arguments(example: Any, model: nn.Module) -> dict[str, Any]:
    """Returns the arguments that an example stands for, by name; by place where they have none."""
    if isinstance(example, Mapping):
        return dict(example)
    given = example if isinstance(example, tuple) else (example,)
    if isinstance(model, OnnxModel):
        return {model.input_name: given[0]}
    forward = model.program if isinstance(model, Program) else model
    try:
        parameters = list(inspect.signature(forward.forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [one.name for one in parameters if one.kind in _NAMED]
    return {
        named[place] if place < len(named) else str(place): value
        for place, value in enumerate(given)
    }
