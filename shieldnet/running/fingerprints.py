"""What a result depends on, in one hash: values, data, models, and code."""

import dis
import importlib.util
import logging
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache, partial
from hashlib import sha256
from importlib.machinery import ModuleSpec, PathFinder
from itertools import accumulate
from modulefinder import ModuleFinder
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from shieldnet.core.errors import ConfigError
from shieldnet.data.examples import raw_bytes
from shieldnet.data.hashing import reduced

_VERSION = 3
_UNSEEN = ("globals", "eval", "exec", "__import__")  # read what no code names
# What torch keeps in every module, but for the mode and the hooks that change what it answers.
_MODULE = frozenset(vars(nn.Module())) - {"_forward_hooks", "_forward_pre_hooks", "training"}
_INSTALLED = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")
)


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


Seen = dict[int | str, tuple[int, object]]
"""What was listed already, by id (files by path): its place, and the object, kept alive."""

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
        for field in fields(value):
            if field.init:
                yield from _lines((field.name, getattr(value, field.name)), seen)
    elif hasattr(value, "__dict__") and not isinstance(value, types.CodeType):
        yield from _lines((type(value), vars(value)), seen)
    elif (state := reduced(value)) is not None:
        yield from _lines(state, seen)
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
        own = {key: entry for key, entry in vars(part).items() if key not in _MODULE}
        yield from _lines((name, type(part), own), seen)
    yield from _lines(dict(model.named_parameters(remove_duplicate=False)), seen)
    yield from _lines(dict(model.named_buffers(remove_duplicate=False)), seen)


def _function(function: types.FunctionType, seen: Seen) -> Iterator[bytes]:
    """Lists code, what it closes over, and all of the user's own that it names or imports."""
    yield function.__qualname__.encode()
    if _installed(function):
        return
    _refuse_unseen(function.__code__)
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
    package = function.__globals__.get("__package__") or ""
    yield from _imported(function.__code__, package, seen)


def _class(value: type, seen: Seen) -> Iterator[bytes]:
    """Lists a class with its bases: methods, and attributes that are no machinery of Python's."""
    for base in value.__mro__:
        yield f"{base.__module__}.{base.__qualname__}".encode()
        if _installed(base):
            continue
        for name, attribute in vars(base).items():
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


def _imported(code: types.CodeType, package: str, seen: Seen) -> Iterator[bytes]:
    """Lists the modules of the user's that code imports when it runs; none is imported for it."""
    names = tuple(_names(code))
    for kind, found in ModuleFinder().scan_opcodes(code):
        if kind not in ("absolute_import", "relative_import"):
            continue
        level, parts, name = found if kind == "relative_import" else (0, *found)
        try:
            module = importlib.util.resolve_name(f"{'.' * level}{name or ''}", package or None)
            named = None if parts and "*" in parts else names
            yield from _module_named(module, parts or (), named, seen)
        except (ImportError, ValueError) as missing:
            raise ConfigError(
                f"Cannot find the module {name} that train imports ({missing}), so no result that "
                "depends on it is kept. Leave cache out, or import it where train is defined."
            ) from missing
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _imported(constant, package, seen)


def _module_named(
    name: str, parts: Sequence[str], names: Sequence[str] | None, seen: Seen
) -> Iterator[bytes]:
    """Lists a module with the packages it stands in, and those of its parts that are modules."""
    for package in accumulate(name.split("."), "{}.{}".format):
        yield from _module_as_imported(package, names, seen)
    for part in parts:
        with suppress(ImportError):
            yield from _module_as_imported(f"{name}.{part}", names, seen)


def _module_as_imported(name: str, names: Sequence[str] | None, seen: Seen) -> Iterator[bytes]:
    """Lists a module as it was loaded; one that is not loaded yet, as its file will be."""
    if name in sys.modules:
        yield from _file(sys.modules[name], names, seen)
        return
    if _is_ours(name):
        return
    spec = _found(name)
    origin = spec.origin
    if origin in (None, "built-in", "frozen") or origin in seen or _is_installed(origin):
        return
    seen[origin] = (len(seen), origin)
    yield name.encode()
    yield _content(origin)
    package = spec.name if spec.submodule_search_locations else spec.parent
    yield from _imported(compile(_content(origin), origin, "exec"), package or "", seen)


def _found(name: str) -> ModuleSpec:
    """Finds a module as an import would, without running the package that it stands in."""
    parent = name.rpartition(".")[0]
    if parent:
        spec = PathFinder.find_spec(name, _found(parent).submodule_search_locations or [])
    else:
        spec = importlib.util.find_spec(name)
    if spec is None:
        raise ImportError(f"no module named {name}")
    return spec


def _refuse_unseen(code: types.CodeType) -> None:
    """Raises ConfigError for code that reads names which it only makes up when it runs."""
    for step in dis.get_instructions(code):
        is_global = step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
        if step.argval == "import_module" or (is_global and step.argval in _UNSEEN):
            raise ConfigError(
                f"{code.co_name} uses {step.argval}, so what it reads cannot be told before it "
                "runs, and no result that depends on it is kept. Leave cache out, or name what it "
                "reads."
            )
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _refuse_unseen(constant)


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
    if _is_ours(name):
        return True
    if isinstance(value, types.FunctionType):
        return _is_installed(value.__code__.co_filename)
    if name == "__main__":
        return False
    module = value if isinstance(value, types.ModuleType) else sys.modules.get(name)
    path = getattr(module, "__file__", None)
    return path is None or _is_installed(path)  # None: built into the interpreter


def _is_ours(name: str) -> bool:
    return name.split(".")[0] == "shieldnet"


def _is_installed(path: str) -> bool:
    return str(Path(path).resolve()).startswith(_INSTALLED)
