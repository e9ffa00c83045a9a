"""A line drawn as a graph by torch.export, for every size of batch."""

import io
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from shieldnet.core.errors import ConfigError, ShieldnetError
from shieldnet.exporting.line import Line
from shieldnet.outputs.nested import named_leaves

_OF_THE_CODE = ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "from_node")
_ADVICE = (
    "A graph has no branches on what numbers say: write them as torch.where, and sizes that depend "
    "on numbers (nonzero, masks) as padding. Where that cannot be, serve the shield from Python."
)


def drawn_as_graph(line: Line, example: Mapping[str, Any]) -> ExportedProgram:
    """Draws a line as a graph of torch's plain operators, for batches of any size, 0 included.

    example: the model's inputs by name; the first axis of each tensor with as many rows as the
        first one is the batch.
    Errors: ConfigError where the model cannot be drawn, with what to do.
    """
    rows = rows_of(example)
    inputs = {**example, **{one.name: one.draw(rows) for one in line.noise}}
    batch = Dim("batch", min=0)
    sizes = {name: _batched(value, rows, batch) for name, value in inputs.items()}
    args = tuple(inputs.pop(name) for name in line.positional)
    line.eval()
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(line, args, inputs, dynamic_shapes=sizes, strict=False)
            program = program.run_decompositions({})
    except ShieldnetError:
        raise
    except Exception as untraceable:
        raise ConfigError(
            f"torch.export could not draw this model for batches of any size: "
            f"{first_line(untraceable)} {_ADVICE}"
        ) from untraceable
    return _plain(program)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what torch says of its own code to itself."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def save_program(program: ExportedProgram, path: Path, facts: Mapping[str, str]) -> None:
    """Writes a graph in torch's form: the same bytes for the same graph.

    The example that it was drawn with, which torch would put into the file, is left out.
    facts: files of text beside the graph.
    """
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=dict(facts))
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(path, "w") as plain:
        for name in whole.namelist():
            if name.endswith("/serialization_id"):  # a random number
                continue
            is_example = "/sample_inputs/" in name
            plain.writestr(zipfile.ZipInfo(name), b"" if is_example else whole.read(name))


def _plain(program: ExportedProgram) -> ExportedProgram:
    """Takes out what is no graph: gradients of answers, and where the code stands on this machine.

    The model's own weights stay as they are.
    """
    for node in program.graph.nodes:
        for said in _OF_THE_CODE:
            node.meta.pop(said, None)
    for name, weight in program.state_dict.items():
        if weight.requires_grad:
            program.state_dict[name] = nn.Parameter(weight.detach(), requires_grad=False)
    return program


def rows_of(example: Mapping[str, Any]) -> int:
    """Counts the rows of an example. Errors: ConfigError where it has fewer than two."""
    tensors = [value for value in example.values() if isinstance(value, Tensor) and value.dim()]
    if not tensors or len(tensors[0]) < 2:
        raise ConfigError(
            "Expected an example of at least two rows, so that the batch is told from the other "
            "sizes. Give a few real ones: example=inputs[:8]."
        )
    return len(tensors[0])


def _batched(value: Any, rows: int, batch: Any) -> Any:
    if not isinstance(value, Tensor):
        return None
    return {0: batch} if value.dim() and len(value) == rows else {}


def first_line(failed: Exception) -> str:
    """Returns the kind of an error and the first line of what it says."""
    line = next((line for line in str(failed).splitlines() if line.strip()), "")
    return f"{type(failed).__name__}: {line.strip()[:300]}"


def tensors_of(released: Any) -> list[Tensor]:
    """Lists the tensors of an answer in their order."""
    return [leaf for leaf in named_leaves(released).values() if isinstance(leaf, Tensor)]
