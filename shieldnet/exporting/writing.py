"""The verb: a shield in a file, tried before it gets its name."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from shieldnet.core.checks import flag
from shieldnet.core.errors import ConfigError
from shieldnet.exporting.comparing import Ask, require_same_answers
from shieldnet.exporting.example import Asked, Example
from shieldnet.exporting.kept_state import kept_state
from shieldnet.exporting.line import Line, require_plain
from shieldnet.exporting.onnx_graph import write_onnx
from shieldnet.exporting.programs import drawn_as_graph, quiet, save_program, tensors_of
from shieldnet.exporting.words import first_line
from shieldnet.runtime import FACTS
from shieldnet.shield.module import Shield


@dataclass(frozen=True)
class Exported:
    """Describes what was written.

    path: of the file. inputs: names of the model's inputs. noise: names of the inputs that take
    noise, which only the server of the file may feed. operators: number of them in the graph.
    outputs: names of the answers. sizes: of each input: a name such as "batch" for one that may
    change, a number for one that is fixed to the example's.
    """

    path: Path
    inputs: tuple[str, ...]
    noise: tuple[str, ...]
    operators: int
    outputs: tuple[str, ...] = ()
    sizes: tuple[tuple[int | str, ...], ...] = ()

    def __repr__(self) -> str:
        named = zip((*self.inputs, *self.noise), self.sizes, strict=True)
        shown = ", ".join(f"{name} ({', '.join(map(str, size))})" for name, size in named)
        noise = f" (noise: {', '.join(self.noise)})" if self.noise else ""
        is_fixed = any(isinstance(one, int) for size in self.sizes for one in size)
        fixed = " Sizes in numbers are fixed: pad inputs to them." if is_fixed else ""
        return (
            f"Exported({self.path}: {shown}{noise} -> {', '.join(self.outputs)}; "
            f"{self.operators} operators.{fixed})"
        )


def export(
    shield: Shield,
    example: Any,
    path: str | Path,
    *,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    opset: int = 20,
    force: bool = False,
) -> Exported:
    """Writes a shield, model and defenses, as one graph that runs without shieldnet.

    A ``.pt2`` file is read by ``torch.export.load``, an ``.onnx`` file by ONNX Runtime and others.
    Both take batches of any size; all other axes keep the sizes of the example, to which inputs
    such as texts have to be padded, unless they are dynamic. The undefended output is no output of
    the graph. A user who holds the file can add one: it protects a model behind an interface, not
    in other hands.

    example: at least two different rows of what the model is asked: a tensor, a tuple of arguments
        or a dict of named ones, all of them tensors or arrays. The first axis of each tensor with
        as many rows is the batch. It is not in the file.
    path: ends in .pt2 or .onnx. dynamic: further axes of any size, by input and index, with a name
        for the size: ``{"input_ids": {1: "length"}, "attention_mask": {1: "length"}}``; by default
        none. Not every model can be drawn so, and noise needs a fixed size. opset: of ONNX's
        operators, 18 to 21, default 20. force: replace an existing file, default False.

    First the shield itself is asked about the example, so that an export refuses what the shield
    refuses. Before the file gets its name it is read again and asked about the example, in batches
    of several sizes, and its answers are compared with the shield's.
    Errors: AnswerError for what the shield refuses. ConfigError for a model that torch.export
        cannot draw, that keeps state or has operators of others, for a shield whose defenses hold a
        key or that has a ``micro_batch``, and for a graph whose answers differ. No file is left.
    """
    target = Path(path)
    write = _writer(target, opset)
    _require_free(target, force)
    require_plain(shield)
    given = Example.of(shield.model, example, dynamic)
    with kept_state(shield.model) as restore, _unfinished(target) as unfinished:
        asked = Asked.of(shield, given)
        restore()
        line = Line(asked.shield, given)
        restore()
        program = drawn_as_graph(line)
        restore()
        ask = write(line, asked, program, unfinished)
        require_same_answers(asked, line, ask, target)
        restore()
        os.replace(unfinished, target)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    sizes = tuple(line.sizes.values())
    noise = tuple(line.noise_sizes)
    return Exported(target, tuple(given.given), noise, len(calls), asked.fields, sizes)


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


def _writer(target: Path, opset: int) -> Callable[..., Ask]:
    if target.suffix == ".pt2":
        return _write_program
    if target.suffix == ".onnx":
        return partial(_write_onnx, opset=opset)
    raise ConfigError(f"Expected a path that ends in .pt2 or .onnx, got {target}.")


def _write_program(line: Line, asked: Asked, program: ExportedProgram, path: Path) -> Ask:
    with quiet():
        save_program(program, path, {FACTS: _facts(asked.shield, line)})
        module = torch.export.load(path).module()

    def ask(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        args, kwargs = line.example.call(inputs)
        return tensors_of(module(*args, **kwargs))

    return ask


def _write_onnx(
    line: Line, asked: Asked, program: ExportedProgram, path: Path, *, opset: int
) -> Ask:
    facts = {FACTS: _facts(asked.shield, line)}
    with quiet():
        write_onnx(program, path, opset, facts, asked.fields, line.noise_sizes, line.sizes)
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as unrunnable:  # of its own kinds, which have no common base
        raise _half_precision(first_line(unrunnable)) from unrunnable
    taken = {node.name for node in session.get_inputs()}

    def ask(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        needed = {name: value.cpu() for name, value in inputs.items() if name in taken}
        try:
            arrays = {name: value.numpy() for name, value in needed.items()}
        except TypeError as no_array:
            raise _half_precision(first_line(no_array)) from no_array
        return [torch.from_numpy(answer) for answer in session.run(None, arrays)]

    return ask


def _half_precision(reason: str) -> ConfigError:
    return ConfigError(
        f"ONNX Runtime cannot run this model on a CPU: {reason} Half precision is the usual "
        "reason: export a model of float32, model.float(), or a .pt2."
    )


def _facts(shield: Shield, line: Line) -> str:
    """Describes the content of a file: the shield in words, its classes and the noise it needs."""
    extent = shield.extent
    noise = {one.name: one.law for one in line.noise}
    facts = {
        "shieldnet": 1,
        "shield": shield.describe(),
        "classes": None if extent is None else extent.classes,
        "noise": noise,
    }
    return json.dumps(facts, sort_keys=True)


def _require_free(target: Path, force: bool) -> None:
    if target.is_dir():
        raise ConfigError(f"{target} is a folder: give the name of a file, {target / target.name}.")
    if target.exists() and not flag("force", force):
        raise ConfigError(f"{target} already exists; use force=True to overwrite it.")


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """Gives a path beside the target for a file without a name; what is left of it is removed."""
    if not target.parent.is_dir():
        raise ConfigError(f"Expected a folder that is there, got {target.parent}.")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        yield Path(folder) / target.name
