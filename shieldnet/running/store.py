"""Results on disk under the fingerprint of all that they depend on; nothing is unpickled."""

import dis
import importlib.util
import json
import logging
import os
import sys
import sysconfig
import tempfile
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

from shieldnet.core.errors import ConfigError
from shieldnet.data.examples import raw_bytes

_VERSION = 2
# What torch keeps in every module, but for the mode and the hooks that change what it answers.
_MODULE = frozenset(vars(nn.Module())) - {"_forward_hooks", "_forward_pre_hooks", "training"}
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
        """Writes arrays under a fingerprint; whoever writes last of several at once wins."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # it tells of the records
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
        unfinished = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # arrays by name
            unfinished.replace(self._path(key))
        finally:
            unfinished.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"


def cache_in(folder: str | Path | None) -> Cache | None:
    """Returns a cache in a folder, or None for None."""
    if folder is None:
        return None
    path = Path(folder).resolve()  # workers may stand in another folder
    if path.exists() and not path.is_dir():
        raise ConfigError(f"Expected cache to be a folder, {path} is a file.")
    return Cache(path)


def fingerprint(*parts: object) -> str:
    """Hashes values, data, models and code, with the versions that made the result.

    A function counts with the source of its file, what it closes over, its defaults and
    attributes, and all of the user's own that it names or imports, however deep: functions,
    classes with their bases and attributes, constants of modules. A model counts with parameters,
    all buffers, its modes and plain attributes. Installed packages count by the versions of torch,
    numpy and this one alone.
    Errors: ConfigError for an object whose content cannot be told: a result might be reused for
        another one.
    """
    digest = sha256()
    versions = (_VERSION, torch.__version__, np.__version__, sys.version, _own_source())
    for line in _lines((versions, parts), {}):
        digest.update(len(line).to_bytes(8, "little"))
        digest.update(line)
    return digest.hexdigest()


Seen = dict[int, tuple[int, object]]
"""What was listed already: its place, and the object, kept alive so that its id stays its own."""

_END = b"\0end"  # no other line begins so: what is nested is told from what follows


def _lines(value: object, seen: Seen) -> Iterator[bytes]:
    """Lists what a value consists of, as bytes; no two values have the same list."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | Path):
        yield f"{type(value).__qualname__} {value!r}".encode()
    elif isinstance(value, np.generic):
        yield f"{value.dtype} {value.item()!r}".encode()
    elif isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
        yield sha256(raw_bytes(value)).digest()
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield f"array {value.dtype} {value.shape}".encode()
        yield value.tobytes()
    elif id(value) in seen:
        yield f"again {seen[id(value)][0]}".encode()
    else:
        seen[id(value)] = (len(seen), value)
        yield f"{type(value).__module__}.{type(value).__qualname__}".encode()
        yield from _inside(value, seen)
        yield _END


def _inside(value: object, seen: Seen) -> Iterator[bytes]:
    own = getattr(type(value), "_fingerprinted", None)
    if own is not None:  # what has a state beside says what counts
        yield from _lines(own(value), seen)
    elif isinstance(value, Mapping):
        for key in value:
            yield from _lines(key, seen)
            yield from _lines(value[key], seen)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _lines(item, seen)
    elif isinstance(value, set | frozenset):
        for item in sorted(value, key=repr):
            yield from _lines(item, seen)
    elif isinstance(value, np.ndarray):
        yield from _lines((value.shape, value.tolist()), seen)
    elif isinstance(value, nn.Module):
        yield from _module(value, seen)
    elif isinstance(value, types.FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, type):
        yield from _class(value, seen)
    elif isinstance(value, types.ModuleType):
        yield from _file(value, None, seen)
    elif isinstance(value, types.MethodType):
        yield from _lines((value.__func__, value.__self__), seen)
    elif isinstance(value, partial):
        yield from _lines((value.func, value.args, value.keywords), seen)
    elif isinstance(value, staticmethod | classmethod):
        yield from _lines(value.__func__, seen)
    elif isinstance(value, property):
        yield from _lines((value.fget, value.fset, value.fdel), seen)
    elif isinstance(value, torch.dtype | torch.device | logging.Logger):
        yield repr(value).encode()
    elif isinstance(value, _BUILT_IN):
        yield f"{getattr(value, '__module__', '')} {value.__qualname__}".encode()
        yield from _lines(_bound_to(value), seen)
    elif is_dataclass(value):
        yield from _lines(type(value), seen)
        for one in fields(value):
            if one.init:
                yield from _lines((one.name, getattr(value, one.name)), seen)
    elif hasattr(value, "__dict__") and not isinstance(value, types.CodeType):
        yield from _lines((type(value), vars(value)), seen)
    else:
        raise ConfigError(
            f"Cannot tell what is in a {type(value).__name__}, so no result that depends on it is "
            "kept. Leave cache out, or give train plain data, functions and modules."
        )


_BUILT_IN = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)


def _bound_to(value: object) -> object:
    """Returns what a built-in method is bound to, None for a function of a module."""
    owner = getattr(value, "__self__", None)
    return None if isinstance(owner, types.ModuleType) else owner


def _module(model: nn.Module, seen: Seen) -> Iterator[bytes]:
    """Lists a model: its parts, their code and modes, its weights and every buffer."""
    for name, part in model.named_modules():
        own = {key: one for key, one in vars(part).items() if key not in _MODULE}
        yield from _lines((name, type(part), own), seen)
    yield from _lines(dict(model.named_parameters(remove_duplicate=False)), seen)
    yield from _lines(dict(model.named_buffers(remove_duplicate=False)), seen)


def _function(function: types.FunctionType, seen: Seen) -> Iterator[bytes]:
    """Lists code, what it closes over, and all of the user's own that it names or imports."""
    yield function.__qualname__.encode()
    if _installed(function):
        return
    yield _content(function.__code__.co_filename)
    yield from _compiled(function.__code__)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    yield from _lines((cells, function.__defaults__, function.__kwdefaults__, vars(function)), seen)
    names = tuple(_names(function.__code__))
    for name in names:
        if name not in function.__globals__:
            continue
        yield name.encode()
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType):
            yield from _file(value, names, seen)
        else:
            yield from _lines(value, seen)
    for module in _imported(function.__code__, function.__globals__.get("__package__") or ""):
        yield from _file(module, None, seen)


def _class(value: type, seen: Seen) -> Iterator[bytes]:
    """Lists a class with its bases: methods, and attributes that are no machinery of Python's."""
    for one in value.__mro__:
        yield f"{one.__module__}.{one.__qualname__}".encode()
        if _installed(one):
            continue
        for name, attribute in vars(one).items():
            is_code = isinstance(
                attribute, types.FunctionType | staticmethod | classmethod | property
            )
            if is_code or not (name.startswith("__") or name == "_abc_impl"):
                yield name.encode()
                yield from _lines(attribute, seen)


def _file(module: types.ModuleType, names: Sequence[str] | None, seen: Seen) -> Iterator[bytes]:
    """Lists a module of the user's: its file, and what is named of it, or all that it defines."""
    yield module.__name__.encode()
    if _installed(module):
        return
    yield _content(getattr(module, "__file__", None))
    for name, value in list(vars(module).items()):
        defined = getattr(value, "__module__", None) == module.__name__
        if name not in names if names is not None else not defined:
            continue
        yield name.encode()
        if isinstance(value, types.ModuleType):
            yield from _file(value, names, seen)
        else:
            yield from _lines(value, seen)


def _imported(code: types.CodeType, package: str) -> Iterator[types.ModuleType]:
    """Finds the modules of the user's that code imports when it runs."""
    steps = list(dis.get_instructions(code))
    for place, step in enumerate(steps):
        if step.opname != "IMPORT_NAME":
            continue
        level = steps[place - 2].argval
        name = f"{'.' * level}{step.argval}"
        try:
            spec = importlib.util.find_spec(name, package or None)
            origin = None if spec is None else spec.origin
            if origin is None or origin in ("built-in", "frozen") or _is_installed(origin):
                continue
            yield importlib.import_module(name, package or None)
        except (ImportError, ValueError) as missing:
            raise ConfigError(
                f"Cannot find the module {name} that train imports ({missing}), so no result that "
                "depends on it is kept. Leave cache out, or import it where train is defined."
            ) from missing
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _imported(constant, package)


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
    yield _END


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _content(path: str | None) -> bytes:
    """Returns the whole file that something is defined in, nothing where there is no file."""
    try:
        return b"" if path is None else Path(path).read_bytes()
    except OSError:
        return b""


@cache
def _own_source() -> bytes:
    """Hashes this package's own code: another attack gives another result."""
    digest = sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
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
        return _is_installed(value.__code__.co_filename)
    if name == "__main__":
        return False
    module = value if isinstance(value, types.ModuleType) else sys.modules.get(name)
    path = getattr(module, "__file__", None)
    return path is None or _is_installed(path)  # None: built into the interpreter


def _is_installed(path: str) -> bool:
    return str(Path(path).resolve()).startswith(_INSTALLED)


def text_array(document: object) -> NDArray[Any]:
    """Writes a JSON document as an array, to be kept beside others."""
    return np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)


def read_text_array(array: NDArray[Any]) -> Any:
    """Reads what ``text_array`` wrote."""
    return json.loads(array.tobytes())
