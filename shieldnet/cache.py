"""Results on disk under the fingerprint of all that they depend on; nothing is unpickled."""

import inspect
import json
import os
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shieldnet.data import raw_bytes
from shieldnet.errors import ConfigError

_VERSION = 1
# What torch keeps in every module, but for the hooks that change what it answers.
_MODULE = frozenset(vars(nn.Module())) - {"_forward_hooks", "_forward_pre_hooks"}
_INSTALLED = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")
)


@dataclass(frozen=True)
class Cache:
    """Keeps arrays in a folder, one .npz file for each fingerprint.

    A file is written whole or not at all, so that a killed run leaves no half of one; what cannot
    be read is made again.
    """

    folder: Path

    def get(self, key: str) -> dict[str, NDArray[Any]] | None:
        """Returns the arrays under a fingerprint, None where there are none."""
        path = self._path(key)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except FileNotFoundError:
            return None
        except Exception:  # damaged in one of a dozen ways: it is made again
            return None

    def put(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Writes arrays under a fingerprint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self._path(key)
        partial_file = target.with_suffix(f".{os.getpid()}.part")
        with partial_file.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # arrays by name
        partial_file.replace(target)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"


def cache_in(folder: str | Path | None) -> Cache | None:
    """Returns a cache in a folder, or None for None."""
    if folder is None:
        return None
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"Expected cache to be a folder, {path} is a file.")
    return Cache(path)


def fingerprint(*parts: object) -> str:
    """Hashes values, data, models and code, with the versions that made the result.

    A function counts with the source of its file, what it closes over, its defaults, and the
    user's own functions, classes, modules and constants that it names, however deep; installed
    packages count by torch's and numpy's versions alone.
    Errors: ConfigError for an object whose content cannot be told: a result might be reused for
        another one.
    """
    digest = sha256()
    versions = (_VERSION, torch.__version__, np.__version__, sys.version, _own_source())
    for line in _lines((versions, parts), {}):
        digest.update(line)
        digest.update(b"\0")
    return digest.hexdigest()


def _lines(value: object, seen: dict[int, object]) -> Iterator[bytes]:
    """Lists what a value consists of, as bytes."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | Path):
        yield f"{type(value).__name__} {value!r}".encode()
        return
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
        yield sha256(raw_bytes(value)).digest()
        return
    if isinstance(value, np.ndarray):
        yield f"array {value.dtype} {value.shape}".encode()
        yield from _lines(value.tolist(), seen) if value.dtype == object else [value.tobytes()]
        return
    if id(value) in seen:
        yield b"again"
        return
    seen[id(value)] = value  # kept alive: a freed object's id would be given to another one
    yield f"{type(value).__module__}.{type(value).__qualname__}".encode()
    yield from _inside(value, seen)


def _inside(value: object, seen: dict[int, object]) -> Iterator[bytes]:
    settings = getattr(type(value), "settings", None)
    if isinstance(settings, types.FunctionType):  # what has a state beside says what counts
        yield from _lines(settings(value), seen)
    elif isinstance(value, Mapping):
        for key in value:
            yield from _lines(key, seen)
            yield from _lines(value[key], seen)
    elif isinstance(value, Sequence | set | frozenset):
        items = value if isinstance(value, Sequence) else sorted(value, key=repr)
        for item in items:
            yield from _lines(item, seen)
    elif isinstance(value, nn.Module):
        yield repr(value).encode()
        yield from _lines(value.state_dict(), seen)
        for part in value.modules():
            yield from _code(type(part), seen)
            own = {name: one for name, one in vars(part).items() if name not in _MODULE}
            yield from _lines(own, seen)
    elif isinstance(value, types.FunctionType | type | types.ModuleType):
        yield from _code(value, seen)
    elif isinstance(value, types.MethodType):
        yield from _lines(value.__func__, seen)
        yield from _lines(value.__self__, seen)
    elif isinstance(value, partial):
        yield from _lines((value.func, value.args, value.keywords), seen)
    elif isinstance(value, types.BuiltinFunctionType | torch.dtype | torch.device):
        yield repr(value).encode()
    elif is_dataclass(value):
        yield from _code(type(value), seen)
        for one in fields(value):
            if one.init:
                yield one.name.encode()
                yield from _lines(getattr(value, one.name), seen)
    elif hasattr(value, "__dict__") and not isinstance(value, types.CodeType):
        yield from _code(type(value), seen)
        yield from _lines(vars(value), seen)
    else:
        raise ConfigError(
            f"Cannot tell what is in a {type(value).__name__}, so no result that depends on it is "
            "kept. Leave cache out, or give train plain data, functions and modules."
        )


def _code(
    value: types.FunctionType | type | types.ModuleType, seen: dict[int, object]
) -> Iterator[bytes]:
    """Lists the source of a function, class or module of the user's, and of what it names."""
    yield getattr(value, "__qualname__", value.__name__).encode()
    if _installed(value):
        return
    functions = [value] if isinstance(value, types.FunctionType) else _functions(value)
    yield _file_of(value, functions)
    for function in functions:
        yield from _compiled(function.__code__)
        cells = function.__closure__ or ()
        yield from _lines([cell.cell_contents for cell in cells], seen)
        yield from _lines((function.__defaults__, function.__kwdefaults__), seen)
        for name in _names(function.__code__):
            if name in function.__globals__:
                yield name.encode()
                yield from _named(function.__globals__[name], seen)


def _named(value: object, seen: dict[int, object]) -> Iterator[bytes]:
    """Lists a global that code names; what cannot be told counts by its type, not its content."""
    try:
        yield from list(_lines(value, seen))
    except ConfigError:
        yield type(value).__qualname__.encode()


def _functions(value: type | types.ModuleType) -> list[types.FunctionType]:
    own = [one for one in vars(value).values() if isinstance(one, types.FunctionType)]
    name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    return [one for one in own if one.__module__ == name]


def _compiled(code: types.CodeType) -> Iterator[bytes]:
    """Lists what code does; marshal would write the same code in other bytes another time."""
    yield code.co_code
    yield repr((code.co_names, code.co_varnames)).encode()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _compiled(constant)
        elif isinstance(constant, frozenset):
            yield repr(sorted(map(repr, constant))).encode()
        else:
            yield repr(constant).encode()


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _file_of(value: object, functions: Sequence[types.FunctionType]) -> bytes:
    """Returns the whole file that something is defined in, nothing where there is no file."""
    try:
        path = inspect.getsourcefile(functions[0] if functions else value)  # type: ignore[arg-type]  # a class or module
        return b"" if path is None else Path(path).read_bytes()
    except (OSError, TypeError):
        return b""


@cache
def _own_source() -> bytes:
    """Hashes this package's own code: another attack gives another result."""
    digest = sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


def _installed(value: types.FunctionType | type | types.ModuleType) -> bool:
    """Says whether something belongs to Python, to an installed package or to this one.

    A function is where its code was written: what a notebook defines has the module of the program
    that runs the notebook.
    """
    name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    if name.split(".")[0] == "shieldnet":
        return True
    if isinstance(value, types.FunctionType):
        path = value.__code__.co_filename
    elif name == "__main__":
        return False
    else:
        path = getattr(sys.modules.get(name), "__file__", None) or _INSTALLED[0]  # built in
    return str(Path(path).resolve()).startswith(_INSTALLED)


def text_array(document: object) -> NDArray[Any]:
    """Writes a JSON document as an array, to be kept beside others."""
    return np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)


def read_text_array(array: NDArray[Any]) -> Any:
    """Reads what ``text_array`` wrote."""
    return json.loads(array.tobytes())
