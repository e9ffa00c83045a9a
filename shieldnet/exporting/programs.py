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
from torch.utils._pytree import tree_leaves

from shieldnet.core.errors import ConfigError, ShieldnetError
from shieldnet.exporting.line import Line
from shieldnet.exporting.operators import in_plain_operators, require_plain_operators
from shieldnet.exporting.words import first_line
from shieldnet.outputs.nested import leaves

_OF_THE_CODE = ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "from_node")
_ADVICE = (
    "A graph has no branches on what numbers say: write them as torch.where, and sizes that depend "
    "on numbers (nonzero, masks) as padding. Where that cannot be, serve the shield from Python."
)


def drawn_as_graph(line: Line) -> ExportedProgram:
    """Draws a line as a graph of torch's plain operators, for batches of any size, 0 included.

    Errors: ConfigError where the model cannot be drawn, with what to do, and for operators that a
        graph may not have (``require_plain_operators``).
    """
    example = line.example.for_drawing()
    batch = Dim("batch", min=0)
    sizes: dict[str, Any] = {
        name: {0: batch} if example.is_batched(value) else {}
        for name, value in example.given.items()
    }
    for name, axes in example.dynamic.items():
        sizes[name] |= dict.fromkeys(axes, Dim.DYNAMIC)  # a model may limit its range
    noise = {one.name: one.draw(example.rows) for one in line.noise}
    sizes |= {name: {0: batch} for name in noise}
    args, kwargs = example.call({**example.given, **noise})
    line.eval()
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(line, args, kwargs, dynamic_shapes=sizes, strict=False)
            program = in_plain_operators(program.run_decompositions({}))
    except ShieldnetError:
        raise
    except Exception as untraceable:
        if example.dynamic and "specialized" in str(untraceable):
            axes = ", ".join(
                sorted({one for named in example.dynamic.values() for one in named.values()})
            )
            raise ConfigError(
                f"The model fixes a size that dynamic= lets change ({axes}), as recurrent layers "
                "do: leave that axis out of dynamic, and pad inputs to the size of the example."
            ) from untraceable
        raise ConfigError(
            f"torch.export could not draw this model for batches of any size: "
            f"{first_line(untraceable)} {_ADVICE}"
        ) from untraceable
    require_plain_operators(program)
    return _plain(program)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what torch logs about its own code."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    reader = logging.getLogger("torch._export.serde.serialize")
    reader.addFilter(_is_of_use)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        reader.removeFilter(_is_of_use)
        log.setLevel(before)


def _is_of_use(record: logging.LogRecord) -> bool:
    return "did not appear in the graph that was deserialized" not in record.getMessage()


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
    """Removes what is no graph: gradients of answers, and where the code is on this machine.

    The model's own weights stay as they are. Ranges of sizes that no value has are left out, too:
    torch.export.load would report each of them.
    """
    used = {
        str(symbol) for node in program.graph.nodes for symbol in _symbols(node.meta.get("val"))
    }
    for symbol in [one for one in program.range_constraints if str(one) not in used]:
        del program.range_constraints[symbol]
    for node in program.graph.nodes:
        for said in _OF_THE_CODE:
            node.meta.pop(said, None)
    for name, weight in program.state_dict.items():
        if weight.requires_grad:
            program.state_dict[name] = nn.Parameter(weight.detach(), requires_grad=False)
    return program


def _symbols(value: Any) -> Iterator[Any]:
    """Lists the symbols in the sizes of a traced value."""
    for leaf in tree_leaves(value):
        sizes = leaf.shape if isinstance(leaf, Tensor) else (leaf,)
        for size in sizes:
            if isinstance(size, torch.SymInt | torch.SymBool | torch.SymFloat):
                yield from size.node.expr.free_symbols


def tensors_of(released: Any) -> list[Tensor]:
    """Lists the tensors of an answer in their order."""
    return [leaf for _, leaf in leaves(released) if isinstance(leaf, Tensor)]
