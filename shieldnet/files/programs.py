"""Exported programs (.pt2), torch's file format for models.

``torch.export.load`` unpickles parts of an archive, looks up functions by any dotted name under
``torch``, evaluates sizes with sympy and runs guards as code. So it never gets the original
archive: what a program of listed operators needs is read, checked, and written to a new archive;
anything else is refused.
"""

import ast
import io
import json
import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shieldnet.core.errors import DataError
from shieldnet.files.checked_operators import CHECKED
from shieldnet.files.documents import parse_json
from shieldnet.files.sizes import content, opened_archive
from shieldnet.files.torch_operators import EVALUATE, refusal

_NAME = re.compile(r"[\w.+\-]*")
_SYMBOL = re.compile(r"[a-z]{1,4}\d{1,9}")
_SIZES = re.compile(
    "Integer|Float|Add|Mul|Min|Max|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|ModularIndexing|"
    "IntTrueDiv|FloatTrueDiv|ToFloat|TruncToInt|CeilToInt|FloorToInt|Identity|Eq|Ne|Lt|Le|Gt|Ge"
)
_TREES = frozenset(
    [None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"]
)
_MAX_SIZE_CHARACTERS = 2000
_MAX_SIZE = 2**53  # in a size
_MAX_INTEGER = 2**64
_CODE = frozenset(["as_graph", "as_operator", "as_custom_obj", "custom_obj"])
_INPUTS = frozenset(["parameter", "buffer", "tensor_constant", "user_input"])

_SIZE = r"L\['\w+'\]\.size\(\)\[\d\]"
_EQUAL_SIZES = re.compile(rf"{_SIZE} == {_SIZE}|\((\d+\*){_SIZE}\) == \(\1{_SIZE}\)")
"""What torch.export says of inputs that share an axis: dropped, as any other code is refused."""
_TEXT = re.compile(r"[\w.,:+\-> *]*")  # of an argument, such as einsum's


class Program(nn.Module):
    """Runs an exported program, always in evaluation mode."""

    def __init__(self, name: str, program: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.program = program
        self.training = False

    def train(self, mode: bool = True) -> "Program":
        """Does nothing: an exported program has one mode."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the program returns.

        Errors: DataError for inputs of a shape that it was not exported for, and for a program that
            changes its own weights, since its next answer would depend on this one.
        """
        before = self._versions()
        try:
            answers = self.program(*args, **kwargs)
        except DataError:
            raise
        except Exception as unfit:  # the program can raise anything
            message = str(unfit).strip().split("\n")[0]
            raise DataError(
                f"{self.name} refuses these inputs: {message:.200}. If it was exported for one "
                "batch size, export it for any: torch.export.export(model, (example,), "
                'dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)).'
            ) from unfit
        if self._versions() != before:
            raise DataError(f"{self.name} changes its own weights when it runs. {EVALUATE}")
        return answers

    def _versions(self) -> list[int]:
        """Returns how often each weight was written."""
        weights = [*self.parameters(), *self.buffers()]
        return [tensor._version for tensor in weights if not tensor.is_inference()]

    def __repr__(self) -> str:
        return f"Program({self.name})"


def load_program(path: Path) -> nn.Module:
    """Reads an exported program without unpickling or evaluating any part of it.

    Errors: DataError for an archive of another kind or version, and for anything but plain torch
        operators on plain weights.
    """
    clean = io.BytesIO(_rebuilt(path))
    with _reading(path), _quiet():
        program = torch.export.load(clean)
        _require_truth_values(program, path)
        module = program.module()
    for node in module.graph.nodes:
        node.target = CHECKED.get(node.target, node.target)
    module.recompile()
    return Program(path.name, module)


def clean_program(path: Path) -> bytes:
    """Returns an archive of what ``load_program`` takes of a file: no example inputs, no pickle."""
    return _rebuilt(path)


def _rebuilt(path: Path) -> bytes:
    """Checks every necessary part of an archive and returns an archive of these parts only."""
    with opened_archive(path, "model") as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}

        def part(name: str) -> bytes:
            if name not in entries:
                raise DataError(f"{path} is not an exported program of one model: no {name} in it.")
            return content(archive, entries[name])

        if part("archive_format") != b"pt2":
            raise DataError(f"{path} is not an exported program, as torch.export.save writes it.")
        program = parse_json(part("models/model.json"), path)
        configs = {
            kind: parse_json(part(f"data/{kind}/model_{kind}_config.json"), path)
            for kind in ("weights", "constants")
        }
        _check_program(program, path)
        written = {
            "archive_format": b"pt2",
            "archive_version": part("archive_version"),
            "byteorder": part("byteorder"),
            ".data/version": part(".data/version"),
            "models/model.json": json.dumps(program).encode(),
            "data/sample_inputs/model.pt": b"",
        }
        for kind, config in configs.items():
            for name in sorted(_payloads(config, kind, path)):
                written[f"data/{kind}/{name}"] = part(f"data/{kind}/{name}")
            written[f"data/{kind}/model_{kind}_config.json"] = json.dumps(config).encode()
    return _archive(written)


def _archive(parts: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # uncompressed, as torch's reader requires
        for name, data in parts.items():
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), data)  # at no time: equal bytes
    return buffer.getvalue()


def _payloads(config: Mapping[str, Any], kind: str, path: Path) -> Iterator[str]:
    """Lists the files of weights or constants; refuses any that torch would unpickle."""
    payloads = config.get("config")
    if not isinstance(payloads, dict):
        raise DataError(f"{path} is damaged: its {kind} are not a table.")
    _check_names(config, path)
    begins = "weight_" if kind == "weights" else "tensor_"
    for name, payload in payloads.items():
        file = payload.get("path_name") if isinstance(payload, dict) else None
        if not isinstance(file, str) or not file.startswith(begins) or "/" in file:
            raise DataError(f"{path}: {name} is not a plain tensor; objects are never unpickled.")
        if payload.get("use_pickle") is not False:
            raise DataError(
                f"{path}: {name} is pickled; pickles are never read. Save plain contiguous weights."
            )
        yield file


def _check_program(program: dict[str, Any], path: Path) -> None:
    """Raises DataError for unsafe content, and drops what plain operators do not need."""
    try:
        graph_module = program["graph_module"]
        nodes, calls = graph_module["graph"]["nodes"], graph_module["module_call_graph"]
        for node in nodes:
            node["metadata"] = {}
            _check_call(node, path)
        graph_module["metadata"] = {}
        _check_signature(graph_module["signature"], path)
        guards = program.get("guards_code") or []
        if not all(map(_is_equal_size, guards)) or graph_module["graph"].get("custom_obj_values"):
            raise DataError(f"{path} has guards or objects that contain code, which are refused.")
        program["guards_code"] = []
        for call in calls:
            for side in ("in_spec", "out_spec"):
                if call["signature"]:
                    _check_tree(parse_json(call["signature"][side], path, kind=list), path)
    except (KeyError, TypeError, AttributeError, ValueError) as damaged:
        if isinstance(damaged, DataError):
            raise
        raise DataError(f"{path} is damaged, or of another version of torch: {damaged!r}") from (
            damaged
        )
    _check_names(program, path)


def _check_call(node: dict[str, Any], path: Path) -> None:
    """Raises DataError unless a node calls a listed operator with plain arguments."""
    arguments: dict[str, Any] = {}
    for position, argument in enumerate(node["inputs"]):
        name = argument["name"] or str(position)
        if name in arguments:
            raise DataError(f"{path} is damaged: {node['target']!r:.80} gets {name!r:.40} twice.")
        arguments[name] = argument["arg"]
    if fault := refusal(node["target"], arguments):
        raise DataError(f"{path} {fault}")


def _check_signature(signature: dict[str, Any], path: Path) -> None:
    """Raises DataError for a program that writes to its weights or takes other than tensors."""
    kinds = {kind for spec in signature["input_specs"] for kind in spec}
    if kinds - _INPUTS:
        raise DataError(f"Expected {path} to take tensors only, got {sorted(kinds - _INPUTS)}.")
    kinds = {kind for spec in signature["output_specs"] for kind in spec}
    if kinds - {"user_output"}:
        raise DataError(
            f"{path} has {', '.join(sorted(kinds - {'user_output'}))} among its outputs: it "
            f"changes its own weights or inputs when it runs. {EVALUATE}"
        )


def _is_equal_size(guard: object) -> bool:
    return isinstance(guard, str) and _EQUAL_SIZES.fullmatch(guard) is not None


def _require_truth_values(program: Any, path: Path) -> None:
    """Raises DataError for bool bytes that are neither 0 nor 1."""
    for tensor in [*program.state_dict.values(), *program.constants.values()]:
        if not (isinstance(tensor, torch.Tensor) and tensor.dtype == torch.bool):
            continue
        if (tensor.contiguous().view(torch.uint8) > 1).any():
            raise DataError(f"{path} is damaged: it has bytes that are neither true nor false.")


def _check_tree(tree: Any, path: Path) -> None:
    """Checks that arguments are nested in tuples, lists and dicts only, without code."""
    kinds = [tree]
    while kinds:
        node = kinds.pop()
        if isinstance(node, dict):
            if node.get("type") not in _TREES:
                raise DataError(f"{path} nests its inputs or outputs in {node.get('type')!r}.")
            kinds += list(node.values())
        elif isinstance(node, list):
            kinds += node


def _check_names(document: Any, path: Path) -> None:
    """Checks every word of a document, since they become names in code that torch generates."""
    todo = [("", document)]
    while todo:
        key, value = todo.pop()
        if isinstance(value, dict):
            if not _CODE.isdisjoint(value):
                raise DataError(f"{path} has a nested graph or an object, which are refused.")
            todo += [("key", name) for name in value]
            todo += list(value.items())
        elif isinstance(value, list):
            todo += [(key, item) for item in value]
        elif isinstance(value, str):
            _check_word(key, value, path)
        elif isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise DataError(f"{path} has an implausible number: {value!r:.40}.")


def _check_word(key: str, word: str, path: Path) -> None:
    if key == "expr_str":
        if not _is_size(word):
            raise DataError(f"{path} has a size that is not arithmetic: {word!r:.80}.")
    elif key in ("in_spec", "out_spec"):
        return  # trees, checked by _check_tree
    elif not (_TEXT if key == "as_string" else _NAME).fullmatch(word):
        raise DataError(f"{path} has an invalid name: {word!r:.80}.")


def _is_size(text: str) -> bool:
    """Returns whether a text is an arithmetic expression of sizes, before sympy evaluates it."""
    if len(text) > _MAX_SIZE_CHARACTERS:
        return False
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _is_part(tree)


def _is_part(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) and abs(node.value) <= _MAX_SIZE
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and _is_part(node.operand)
    if isinstance(node, ast.BinOp):
        is_plain = isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.FloorDiv | ast.Mod)
        return is_plain and _is_part(node.left) and _is_part(node.right)
    if isinstance(node, ast.Name):
        return _SYMBOL.fullmatch(node.id) is not None
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return False
    if node.func.id == "Symbol":
        return (
            len(node.args) == 1
            and isinstance(node.args[0], ast.Constant)
            and _SYMBOL.fullmatch(str(node.args[0].value)) is not None
            and all(isinstance(keyword.value, ast.Constant) for keyword in node.keywords)
        )
    is_known = _SIZES.fullmatch(node.func.id) is not None and not node.keywords
    return is_known and all(map(_is_part, node.args))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Converts any exception of torch's readers, which document none, to a DataError."""
    try:
        yield
    except Exception as unreadable:
        message = str(unreadable).strip().split("\n")[0]
        raise DataError(
            f"{path} is damaged, or of another version of torch: "
            f"{type(unreadable).__name__}: {message:.300}"
        ) from unreadable


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch from logging a traceback of an exception that is raised anyway."""
    logs = [logging.getLogger(name) for name in ("torch.export", "torch._subclasses.fake_tensor")]
    before = [log.disabled for log in logs]
    for log in logs:
        log.disabled = True
    try:
        yield
    finally:
        for log, was in zip(logs, before, strict=True):
            log.disabled = was
