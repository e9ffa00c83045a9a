"""Models in files of torch's own: exported programs (.pt2) and TorchScript.

``torch.export.load`` unpickles parts of an archive, looks functions up by any dotted name under
``torch``, evaluates sizes with sympy and runs guards as code. So nothing of an archive is handed to
it as it came: what a program of plain tensor operators needs is read, checked against a list, and
written into an archive of our own; anything else is refused.
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

from shieldnet._validate import unwarned
from shieldnet.errors import DataError
from shieldnet.files.limits import content, opened_archive

_NAME = re.compile(r"[\w.+\-]*")
_OPERATOR = re.compile(r"torch\.ops\.(aten|prims)\.\w+\.\w+")
_OUTSIDE = re.compile(r"file|_print|_unsafe")  # operators that touch a disk, or check no bounds
_ARITHMETIC = re.compile(
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|neg|getitem|eq|ne|lt|le|gt|ge)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_\w+"
)
_SYMBOL = re.compile(r"[a-z]{1,4}\d{1,9}")
_SIZES = re.compile(
    "Integer|Float|Add|Mul|Min|Max|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|ModularIndexing|"
    "IntTrueDiv|FloatTrueDiv|ToFloat|TruncToInt|CeilToInt|FloorToInt|Identity|Eq|Ne|Lt|Le|Gt|Ge"
)
_TREES = frozenset(
    [None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"]
)
_LONGEST = 2000  # characters of a size
_MOST = 2**53  # in a size
_MOST_INTEGER = 2**64

_TEXT = re.compile(r"[\w.,+\-> *]*")  # of an argument, such as einsum's
_SCRIPT = re.compile(rb"\b(save|from_file)\b|\bops\s*\.\s*(?!aten\b|prims?\b|quantized\b)\w+")


class Program(nn.Module):
    """Answers as an exported program does; it is always in evaluation mode."""

    def __init__(self, name: str, program: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.program = program
        self.training = False

    def train(self, mode: bool = True) -> "Program":
        """Changes nothing: an exported program has one mode."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the program returns.

        Errors: DataError for inputs of a shape that it was not exported for.
        """
        try:
            return self.program(*args, **kwargs)
        except Exception as unfit:  # whatever the file's program does is the file's
            words = str(unfit).strip().split("\n")[0]
            raise DataError(
                f"{self.name} refuses these inputs: {words:.200}. If it was exported for batches "
                "of one size, export it for any: torch.export.export(model, (example,), "
                'dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)).'
            ) from unfit

    def __repr__(self) -> str:
        return f"Program({self.name})"


def load_program(path: Path) -> nn.Module:
    """Reads an exported program, without unpickling or evaluating any of it.

    Errors: DataError for an archive of another kind or version, and for whatever is more than
        plain tensor operators of torch on plain weights.
    """
    clean = io.BytesIO(_rebuilt(path))
    with _reading(path), _quiet():
        program = torch.export.load(clean)
        module = program.module()
    return Program(path.name, module)


def load_script(path: Path) -> nn.Module:
    """Reads TorchScript, on the CPU and in evaluation mode.

    Its archive is rebuilt from checked parts. Its own reader makes tensors and TorchScript's types
    alone; what the program computes runs when it is asked, without Python, and may not touch files.
    Errors: DataError for what is no TorchScript.
    """
    with opened_archive(path, "model") as archive:
        parts = {entry.filename: content(archive, entry) for entry in archive.infolist()}
    roots = {name.split("/")[0] for name in parts}
    if len(roots) != 1 or not any(name.endswith("/data.pkl") for name in parts):
        raise DataError(f"{path} is no TorchScript: expected torch.jit.save's archive.")
    for name, data in parts.items():
        if name.endswith(".py") and (found := _SCRIPT.search(data)):
            raise DataError(
                f"{path} uses {found.group().decode()} in {name}: operators that touch files, or "
                "that are not torch's own, are refused."
            )
    written = {name.partition("/")[2]: data for name, data in parts.items()}
    with _reading(path), unwarned("`torch.jit"):
        model: nn.Module = torch.jit.load(io.BytesIO(_archive(written)), map_location="cpu")
    return model.eval()


def _rebuilt(path: Path) -> bytes:
    """Checks every part of an archive that is needed and returns an archive of these alone."""
    with opened_archive(path, "model") as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}

        def part(name: str) -> bytes:
            if name not in entries:
                raise DataError(f"{path} is no exported program of one model: it has no {name}.")
            return content(archive, entries[name])

        if part("archive_format") != b"pt2":
            raise DataError(f"{path} is no exported program: expected torch.export.save's archive.")
        program = _parsed(part("models/model.json"), path)
        configs = {
            kind: _parsed(part(f"data/{kind}/model_{kind}_config.json"), path)
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
    with zipfile.ZipFile(buffer, "w") as archive:  # stored, as torch's reader wants it
        for name, data in parts.items():
            archive.writestr(f"model/{name}", data)
    return buffer.getvalue()


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as broken:
        raise DataError(f"{path} is damaged: {broken}") from broken
    if not isinstance(document, dict):
        raise DataError(f"{path} is damaged: expected an object, got {type(document).__name__}.")
    return document


def _payloads(config: Mapping[str, Any], kind: str, path: Path) -> Iterator[str]:
    """Lists the files of weights or constants; refuses any that would be unpickled."""
    payloads = config.get("config")
    if not isinstance(payloads, dict):
        raise DataError(f"{path} is damaged: its {kind} are no table.")
    _check_names(config, path)
    begins = "weight_" if kind == "weights" else "tensor_"
    for name, payload in payloads.items():
        file = payload.get("path_name") if isinstance(payload, dict) else None
        if not isinstance(file, str) or not file.startswith(begins) or "/" in file:
            raise DataError(f"{path}: {name} is no plain tensor, and objects are never unpickled.")
        if payload.get("use_pickle") is not False:
            raise DataError(
                f"{path}: {name} is pickled, and is never unpickled. Save plain contiguous weights."
            )
        yield file


def _check_program(program: dict[str, Any], path: Path) -> None:
    """Raises DataError for whatever plain tensor operators do not need; drops the rest."""
    try:
        graph_module = program["graph_module"]
        nodes, calls = graph_module["graph"]["nodes"], graph_module["module_call_graph"]
        for node in nodes:
            node["metadata"] = {}
        graph_module["metadata"] = {}
        if program.get("guards_code") or graph_module["graph"].get("custom_obj_values"):
            raise DataError(f"{path} has guards or objects that are code: they are refused.")
        for call in calls:
            for side in ("in_spec", "out_spec"):
                if call["signature"]:
                    _check_tree(json.loads(call["signature"][side]), path)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as damaged:
        if isinstance(damaged, DataError):
            raise
        raise DataError(f"{path} is damaged, or of another version of torch: {damaged!r}") from (
            damaged
        )
    _check_names(program, path)


def _check_tree(tree: Any, path: Path) -> None:
    """Checks how arguments are nested: in tuples, lists and dicts, and nothing with code."""
    kinds = [tree]
    while kinds:
        one = kinds.pop()
        if isinstance(one, dict):
            if one.get("type") not in _TREES:
                raise DataError(f"{path} nests its inputs or outputs in {one.get('type')!r}.")
            kinds += list(one.values())
        elif isinstance(one, list):
            kinds += one


def _check_names(document: Any, path: Path) -> None:
    """Checks every word of a document: they become names in code that torch writes."""
    todo = [("", document)]
    while todo:
        key, value = todo.pop()
        if isinstance(value, dict):
            todo += [("key", name) for name in value]
            todo += list(value.items())
        elif isinstance(value, list):
            todo += [(key, one) for one in value]
        elif isinstance(value, str):
            _check_word(key, value, path)
        elif isinstance(value, int) and abs(value) > _MOST_INTEGER:
            raise DataError(f"{path} has an absurd number: {value!r:.40}.")


def _check_word(key: str, word: str, path: Path) -> None:
    if key in ("target", "as_operator"):
        is_operator = _OPERATOR.fullmatch(word) and not _OUTSIDE.search(word)
        if not (is_operator or _ARITHMETIC.fullmatch(word)):
            raise DataError(f"{path} calls {word!r}: only plain operators of torch are.")
    elif key == "expr_str":
        if not _is_size(word):
            raise DataError(f"{path} has a size that is no arithmetic: {word!r:.80}.")
    elif key in ("in_spec", "out_spec"):
        return  # trees, which _check_tree has seen
    elif not (_TEXT if key == "as_string" else _NAME).fullmatch(word):
        raise DataError(f"{path} has a name that is none: {word!r:.80}.")


def _is_size(words: str) -> bool:
    """Says whether words are sizes put together by arithmetic, before sympy evaluates them."""
    if len(words) > _LONGEST:
        return False
    try:
        tree = ast.parse(words, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _is_part(tree)


def _is_part(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) and abs(node.value) <= _MOST
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
            and all(isinstance(one.value, ast.Constant) for one in node.keywords)
        )
    is_known = _SIZES.fullmatch(node.func.id) is not None and not node.keywords
    return is_known and all(map(_is_part, node.args))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns whatever torch's readers raise into one error: they document none."""
    try:
        yield
    except Exception as unreadable:
        words = str(unreadable).strip().split("\n")[0]
        raise DataError(
            f"{path} is damaged, or of another version of torch: "
            f"{type(unreadable).__name__}: {words:.300}"
        ) from unreadable


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch from logging a traceback for what is raised anyway."""
    logs = [logging.getLogger(name) for name in ("torch.export", "torch._subclasses.fake_tensor")]
    before = [log.disabled for log in logs]
    for log in logs:
        log.disabled = True
    try:
        yield
    finally:
        for log, was in zip(logs, before, strict=True):
            log.disabled = was
