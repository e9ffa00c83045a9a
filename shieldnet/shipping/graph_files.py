"""A shield's graph in a file: read as strictly as a model's file is, and asked by names."""

import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shieldnet.core.errors import DataError
from shieldnet.exporting.programs import tensors_of
from shieldnet.files.documents import parse_json
from shieldnet.files.onnx_models import OnnxModel, clean_onnx, metadata_of
from shieldnet.files.programs import load_program
from shieldnet.outputs.nested import named_leaves, written
from shieldnet.runtime import FACTS
from shieldnet.shipping.description import TensorFacts
from shieldnet.shipping.parts import ONNX
from shieldnet.shipping.reading import from_copy

_MAX_FACTS = 2**26
_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
}


@dataclass(frozen=True)
class Graph:
    """Holds a graph that was read. said: what it says of itself, as ``sn.export`` writes it.

    ask: answers inputs by name, and returns tensors in the order of the outputs.
    """

    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    said: Mapping[str, Any]
    ask: Callable[[Mapping[str, Any]], list[Tensor]]

    @property
    def noise(self) -> tuple[str, ...]:
        """Returns the names of the inputs that no client may feed."""
        return tuple(self.said["noise"])


def read_graph(name: str, content: bytes) -> Graph:
    """Reads a shield's graph by the readers of models' files; nothing is unpickled.

    name: ``model.onnx`` or ``model.pt2``.
    Errors: DataError for what these readers refuse, and for a graph that ``sn.export`` did not
        write; MissingDependency without the packages of ONNX.
    """
    return from_copy(content, name, _onnx if name == ONNX else _program)


def _onnx(path: Path) -> Graph:
    content = path.read_bytes()
    session = OnnxModel(path.name, clean_onnx(content, path)).session()
    inputs, outputs = (
        tuple(
            TensorFacts(one.name, tuple(map(_size, one.shape)), _dtype(one.type)) for one in entries
        )
        for entries in (session.get_inputs(), session.get_outputs())
    )

    def ask(given: Mapping[str, Any]) -> list[Tensor]:
        arrays = {one.name: given[one.name].cpu().numpy() for one in inputs}
        return [torch.from_numpy(answer) for answer in session.run(None, arrays)]

    return Graph(inputs, outputs, _said(metadata_of(content).get(FACTS), path), ask)


def _program(path: Path) -> Graph:
    program: Any = load_program(path).program
    taken = [node for node in program.graph.nodes if node.op == "placeholder"]
    (end,) = (node for node in program.graph.nodes if node.op == "output")
    released = _tree(program, [node.meta.get("val") for node in end.args[0]])

    def ask(given: Mapping[str, Any]) -> list[Tensor]:
        args, kwargs = torch.utils._pytree.tree_unflatten(
            [given[node.target] for node in taken], program._in_spec
        )
        return tensors_of(program(*args, **kwargs))

    return Graph(
        tuple(_facts(node.target, node.meta.get("val")) for node in taken),
        tuple(_facts(written(key), value) for key, value in named_leaves(released).items()),
        _said(_beside(path), path),
        ask,
    )


def _tree(program: nn.Module, flat: list[Any]) -> Any:
    """Returns values in the structure in which a program gives its answers."""
    return torch.utils._pytree.tree_unflatten(flat, program._out_spec)  # type: ignore[arg-type]  # of torch's own


def _facts(name: str, value: object) -> TensorFacts:
    if not isinstance(value, Tensor):
        return TensorFacts(name, (), type(value).__name__)
    return TensorFacts(
        name, tuple(map(_size, value.shape)), str(value.dtype).removeprefix("torch.")
    )


def _size(size: object) -> int | None:
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _dtype(kind: str) -> str:
    return _TYPES.get(kind, kind.removeprefix("tensor(").removesuffix(")"))


def _beside(path: Path) -> bytes | None:
    """Returns the facts of a .pt2 file, which ``load_program`` has taken before."""
    with zipfile.ZipFile(path) as archive:
        names = [one for one in archive.infolist() if one.filename.endswith(f"extra/{FACTS}")]
        if len(names) != 1 or names[0].file_size > _MAX_FACTS:
            return None
        return archive.read(names[0])


def _said(text: str | bytes | None, path: Path) -> Mapping[str, Any]:
    said = {} if text is None else parse_json(text, path, "graph's description of itself")
    is_ours = said.get("shieldnet") == 1 and isinstance(said.get("noise"), dict)
    if not is_ours or not isinstance(said.get("shield"), str):
        raise DataError(
            f"{path} is no graph that shieldnet.export wrote: it says nothing of a shield in it."
        )
    return said


def count_of(tensor: TensorFacts, rows: int) -> int:
    """Counts the numbers of a tensor with so many rows."""
    return math.prod(rows if size is None else size for size in tensor.shape)
