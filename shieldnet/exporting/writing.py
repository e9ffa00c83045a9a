"""The verb: a shield in a file, tried before it gets its name."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from shieldnet.core.checks import flag
from shieldnet.core.errors import ConfigError
from shieldnet.exporting.line import Line
from shieldnet.exporting.onnx_graph import write_onnx
from shieldnet.exporting.programs import (
    drawn_as_graph,
    first_line,
    quiet,
    rows_of,
    save_program,
    tensors_of,
)
from shieldnet.runtime import FACTS
from shieldnet.shield.module import Shield

_NEAR = 1e-4  # of the answers' range: another runtime adds floats in another order


@dataclass(frozen=True)
class Exported:
    """Says what was written.

    path: of the file. inputs: names of the model's inputs. noise: names of the inputs that take
    noise, which only whoever serves the file may feed. operators: how many the graph has.
    """

    path: Path
    inputs: tuple[str, ...]
    noise: tuple[str, ...]
    operators: int


def export(
    shield: Shield,
    example: Any,
    path: str | Path,
    *,
    opset: int = 20,
    force: bool = False,
) -> Exported:
    """Writes a shield, model and defenses, as one graph that runs without shieldnet.

    A ``.pt2`` file is read by ``torch.export.load``, an ``.onnx`` file by ONNX Runtime and others.
    Both take batches of any size. The undefended output is no output of the graph. Whoever holds
    the file can add one: it protects a model behind an interface, not in other hands.

    A graph draws no noise: each defense that does has one more input, called ``noise``, which
    ``shieldnet.runtime`` draws for each batch. Never let a client feed it. A row that the shield
    would refuse, such as one with NaN, gives NaN; where labels are released it gives -1.

    example: at least two rows of what the model is asked: a tensor, a tuple of arguments or a dict
        of named ones. The first axis of each tensor with as many rows is the batch.
    path: ends in .pt2 or .onnx. opset: of ONNX's operators. force: replace a file that is there.

    Before the file gets its name it is read again and asked about the example, in batches of
    several sizes, and its answers are compared with the shield's.
    Errors: ConfigError for a model that torch.export cannot draw, for a shield whose defenses hold
        a key, and for a graph whose answers differ; nothing is left behind.
    """
    target = Path(path)
    write = _writer(target, opset)
    if target.exists() and not flag("force", force):
        raise ConfigError(f"{target} already exists; use force=True to overwrite it.")
    line = Line(shield, example)
    given = line.given
    program = drawn_as_graph(line, given)
    with _unfinished(target) as unfinished:
        ask = write(line, program, unfinished, {FACTS: _facts(shield, line)})
        _require_same_answers(line, ask, target)
        os.replace(unfinished, target)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return Exported(target, tuple(given), tuple(one.name for one in line.noise), len(calls))


def graphs_of(shield: Shield, example: Any, endings: Sequence[str]) -> dict[str, bytes]:
    """Returns a shield as graphs, by the names that they have in a hardened folder.

    endings: ``"pt2"``, ``"onnx"`` or both. example and errors: as in ``export``.
    """
    graphs = {}
    with tempfile.TemporaryDirectory() as folder:
        for ending in dict.fromkeys(endings):
            written = export(shield, example, Path(folder) / f"model.{ending}")
            graphs[written.path.name] = written.path.read_bytes()
    return graphs


Ask = Callable[[Mapping[str, Any]], list[Tensor]]
"""Asks a graph by the names of its inputs and returns its answers."""


def _writer(target: Path, opset: int) -> Callable[..., Ask]:
    if target.suffix == ".pt2":
        return _write_program
    if target.suffix == ".onnx":
        return lambda line, program, path, facts: _write_onnx(program, path, facts, opset)
    raise ConfigError(f"Expected a path that ends in .pt2 or .onnx, got {target}.")


def _write_program(line: Line, program: ExportedProgram, path: Path, facts: dict[str, str]) -> Ask:
    with quiet():
        save_program(program, path, facts)
        module = torch.export.load(path).module()

    def ask(inputs: Mapping[str, Any]) -> list[Tensor]:
        named = dict(inputs)
        args = [named.pop(name) for name in line.positional]
        return tensors_of(module(*args, **named))

    return ask


def _write_onnx(program: ExportedProgram, path: Path, facts: dict[str, str], opset: int) -> Ask:
    with quiet():
        write_onnx(program, path, opset, facts)
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as unrunnable:  # of its own kinds, which have no common base
        raise ConfigError(
            f"ONNX Runtime cannot run this model on a CPU: {first_line(unrunnable)} Half precision "
            "is the usual reason: export a model of float32, model.float(), or a .pt2."
        ) from unrunnable
    taken = {node.name for node in session.get_inputs()}

    def ask(inputs: Mapping[str, Any]) -> list[Tensor]:
        arrays = {name: value.cpu().numpy() for name, value in inputs.items() if name in taken}
        return [torch.from_numpy(answer) for answer in session.run(None, arrays)]

    return ask


def _facts(shield: Shield, line: Line) -> str:
    """Says of a file what is in it: the shield in words, its classes and the noise it needs."""
    extent = shield.extent
    noise = {one.name: one.law for one in line.noise}
    facts = {
        "shieldnet": 1,
        "shield": shield.describe(),
        "classes": None if extent is None else extent.classes,
        "noise": noise,
    }
    return json.dumps(facts, sort_keys=True)


def _require_same_answers(line: Line, ask: Ask, target: Path) -> None:
    rows = rows_of(line.given)
    for count in dict.fromkeys((rows, 1, rows - 1)):
        inputs = {
            name: value[:count] if isinstance(value, Tensor) and len(value) == rows else value
            for name, value in line.given.items()
        }
        inputs |= {one.name: one.draw(count) for one in line.noise}
        with torch.no_grad():
            wanted = tensors_of(line(**inputs))
        answers = ask(inputs)
        if len(wanted) != len(answers) or not all(map(_near, wanted, answers)):
            raise ConfigError(
                f"The graph for {target} answers a batch of {count} rows otherwise than the shield "
                "does; nothing was written. Serve the shield from Python, and report the model's "
                "operators."
            )


def _near(wanted: Tensor, answer: Tensor) -> bool:
    if wanted.shape != answer.shape or wanted.dtype != answer.dtype:
        return False
    if not wanted.is_floating_point() or not wanted.numel():
        return torch.equal(wanted, answer)
    span = float(wanted.max() - wanted.min()) + 1e-2 * float(wanted.abs().max())
    return bool(((wanted - answer).abs() <= _NEAR * span).all())


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """Gives a path beside the target for a file without a name; what is left of it is removed."""
    if not target.parent.is_dir():
        raise ConfigError(f"Expected a folder that is there, got {target.parent}.")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        yield Path(folder) / target.name
