"""Fingerprints: one hash of the values, data, models and code that a result depends on."""

import copyreg
import importlib.util
import logging
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache, partial
from hashlib import sha256
from importlib.machinery import ModuleSpec, PathFinder
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shieldnet.data.hashing import content_of, is_filled
from shieldnet.running import code_objects
from shieldnet.running.origins import file_content, is_installed, is_installed_path, is_ours
from shieldnet.running.seen import Seen, Setting

_VERSION = 4
# Attributes that torch keeps in every module, except the mode and hooks, which affect answers.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MODULE = frozenset(vars(nn.Module())) - {*_HOOKS, "training"}
# Attributes that Python adds to every class.
_OF_CLASSES = frozenset(
    f"__{name}__"
    for name in (
        *("abstractmethods", "annotations", "classcell", "dataclass_fields", "dataclass_params"),
        *("dict", "doc", "firstlineno", "match_args", "module", "orig_bases"),
        *("parameters", "qualname", "slots", "static_attributes", "weakref"),
    )
) | {"_abc_impl"}
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_HOLDS_DATA = (*_PLAIN, tuple, list, dict, set, frozenset, Tensor, np.ndarray, np.generic)
_UNSEEN = (*code_objects.UNSEEN, importlib.import_module)


def fingerprint(*parts: object, whole_files: bool = True, setting: Setting = "cache") -> str:
    """Hashes values, data, models and code, and the versions of packages.

    A function counts with the source of its file, its closure, defaults and attributes, and, at any
    depth, all user code that it names or imports: functions, classes with their bases and
    attributes, and module constants. A model counts with its parameters, all buffers, modes and
    plain attributes. Of installed packages only the versions of torch, numpy and shieldnet count.
    whole_files: whether the text of a whole file counts, or only the code in it that is used.
    setting: what the fingerprint is for, which errors name.
    Errors: ConfigError for an object whose content is unknown, since its result could be reused for
        another object.
    """
    digest = sha256()
    seen = Seen(whole_files=whole_files, setting=setting)
    for line in _lines((_VERSION, tuple(versions().values()), parts), seen):
        digest.update(len(line).to_bytes(8, "little"))
        digest.update(line)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Returns the versions that count, by name; of shieldnet a hash of its code."""
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "Python": sys.version,
        "shieldnet": f"sha256:{_own_source().hex()}",
    }


_END = b"\0end"  # no other line starts like this: it separates nested values from those after


def _lines(value: object, seen: Seen) -> Iterator[bytes]:
    """Lists the content of a value as bytes; different values have different lists."""
    if type(value) in _PLAIN or isinstance(value, Path):
        yield f"{type(value).__qualname__} {value!r}".encode()
    elif isinstance(value, np.generic):
        yield f"{value.dtype} {value.item()!r}".encode()
    elif isinstance(value, Tensor):
        yield from _tensor(value, seen)
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


def _tensor(value: Tensor, seen: Seen) -> Iterator[bytes]:
    yield f"tensor {value.dtype} {tuple(value.shape)} {value.requires_grad}".encode()
    yield from (sha256(part).digest() for part in content_of(value))
    if value._backward_hooks:
        yield from _lines(dict(value._backward_hooks), seen)


def _inside(value: object, seen: Seen) -> Iterator[bytes]:
    own = getattr(type(value), "_fingerprinted", None)
    if own is not None:  # the object itself declares what counts
        yield from _lines(own(value), seen)
    elif isinstance(value, Mapping | Sequence | set | frozenset):
        yield from _container(value, seen)
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
    elif isinstance(value, types.CellType):
        yield from _lines(value.cell_contents, seen) if is_filled(value) else (b"empty",)
    elif isinstance(value, _SHOWN) or type(value).__module__ in _TYPING:
        yield repr(value).encode()
    elif isinstance(value, _BUILT_IN):
        yield from _built_in(value, seen)
    else:
        yield from _instance(value, seen)


def _container(value: object, seen: Seen) -> Iterator[bytes]:
    """Lists the items of a container, and the class and attributes of a user-defined one."""
    if isinstance(value, Mapping):
        for key in value:
            yield from _lines(key, seen)
            with seen.inside(key if isinstance(key, str) else ""):
                yield from _lines(value[key], seen)
        yield from _lines(getattr(value, "default_factory", None), seen)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _lines(item, seen)
    elif isinstance(value, set | frozenset):
        for item in sorted(value, key=repr):
            yield from _lines(item, seen)
    if not is_installed(type(value)):
        yield from _lines((type(value), dict(getattr(value, "__dict__", {}))), seen)


def _instance(value: object, seen: Seen) -> Iterator[bytes]:
    """Lists the class and attributes of an object, or its pickled content."""
    kind = type(value)
    if is_dataclass(value) and is_ours(kind.__module__):
        made = [field.name for field in fields(value) if field.init]
        yield from _lines((kind, {name: getattr(value, name) for name in made}), seen)
        return
    slots = {
        name: getattr(value, name)
        for base in kind.__mro__
        for name in _slots(base)
        if hasattr(value, name)
    }
    is_plain = all("__slots__" in vars(base) for base in kind.__mro__[:-1])
    if isinstance(value, types.CodeType) or not (slots or is_plain or hasattr(value, "__dict__")):
        slots = {"made of": _made_of(value, seen)}
    elif is_installed(kind) and kind.__reduce__ is not object.__reduce__:
        slots["made of"] = _made_of(value, seen)  # as random.Random, whose state is no attribute
    with seen.inside("" if seen.place else kind.__qualname__):
        yield from _lines((kind, getattr(value, "__dict__", {}), slots), seen)


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _made_of(value: object, seen: Seen) -> object:
    """Returns the pickled content of an object of an installed package."""
    try:
        if not is_installed(type(value)) or isinstance(value, types.CodeType):
            raise TypeError("of the user's own")
        reduce = copyreg.dispatch_table.get(type(value))
        parts = value.__reduce_ex__(4) if reduce is None else reduce(value)
        return (
            parts
            if isinstance(parts, str)
            else [list(part) if isinstance(part, Iterator) else part for part in parts]
        )
    except Exception as untold:
        raise seen.unknown(type(value).__name__) from untold


_SHOWN = (
    *(torch.dtype, torch.device, np.dtype, logging.Logger),
    *(types.GenericAlias, types.UnionType, types.EllipsisType, types.NotImplementedType),
)
"""Types whose repr is their whole content."""
_TYPING = ("typing", "typing_extensions")
"""Modules whose objects, such as NoDefault, are constants that their repr names."""
_BUILT_IN = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.ClassMethodDescriptorType,
)


def _built_in(value: Any, seen: Seen) -> Iterator[bytes]:
    if value in _UNSEEN:
        raise seen.unseen(seen.where or "The code", value.__name__)
    yield f"{getattr(value, '__module__', '')} {value.__qualname__}".encode()
    owner = getattr(value, "__self__", None)  # the module of a module's function
    yield from _lines(None if isinstance(owner, types.ModuleType) else owner, seen)


def _module(model: nn.Module, seen: Seen) -> Iterator[bytes]:
    """Lists a model's modules with their code and modes, its weights and every buffer."""
    for name, part in model.named_modules():
        own = {key: entry for key, entry in vars(part).items() if key not in _MODULE}
        with seen.inside(type(model).__qualname__), seen.inside(name):
            yield from _lines((name, type(part), own), seen)
    first: dict[int, str] = {}
    for kind in (model.named_parameters, model.named_buffers):
        for name, tensor in kind(remove_duplicate=False):
            yield from _lines((name, first.setdefault(id(tensor), name), tensor), seen)


def _function(function: types.FunctionType, seen: Seen) -> Iterator[bytes]:
    """Lists a function's code and closure, and all user code that it names or imports.

    Of an installed function only its closure, wrapped function and defaults count: those of a
    decorator belong to the user.
    """
    if function in _UNSEEN:
        raise seen.unseen(seen.where or "The code", function.__name__)
    yield function.__qualname__.encode()
    if is_ours(function.__module__ or ""):
        return
    with seen.inside(function.__name__):
        yield from _lines(list(function.__closure__ or ()), seen)
        yield from _lines((function.__defaults__, function.__kwdefaults__), seen)
        if is_installed(function):
            yield from _lines(getattr(function, "__wrapped__", None), seen)
        else:
            yield from _used(function, seen)


def _used(function: types.FunctionType, seen: Seen) -> Iterator[bytes]:
    """Lists a user's code, and all of the user's that it names or imports."""
    code, named = function.__code__, function.__globals__
    seen.require_seen(code, set(named))
    yield seen.text(code.co_filename, any_name=code_objects.reads_any_name(code))
    yield from code_objects.content(code)
    yield from _lines(vars(function), seen)
    names = None if code_objects.reads_any_name(code) else code_objects.names(code)
    for name in code_objects.names(code):
        if name not in named:
            continue
        yield name.encode()
        yield from _named(name, named[name], names, seen)
    yield from _imported(code, named.get("__package__") or "", seen)


def _named(name: str, value: object, names: Sequence[str] | None, seen: Seen) -> Iterator[bytes]:
    """Lists what a name stands for. names: those used of a module, or None for all."""
    if isinstance(value, types.ModuleType):
        yield from _file(value, names, seen)
        return
    own = value.__name__ if isinstance(value, types.FunctionType | type) else ""
    with seen.inside("" if own == name else name):  # a function and a class name themselves
        yield from _lines(value, seen)


def _class(value: type, seen: Seen) -> Iterator[bytes]:
    """Lists a class with its bases: methods, and attributes that Python did not add."""
    if not is_installed(type(value)):
        yield from _lines(type(value), seen)
    for base in value.__mro__:
        yield f"{base.__module__}.{base.__qualname__}".encode()
        if is_installed(base):
            continue
        for name, attribute in vars(base).items():
            if name not in _OF_CLASSES and not isinstance(attribute, types.MemberDescriptorType):
                yield name.encode()
                with seen.inside(value.__qualname__):
                    yield from _named(name, attribute, None, seen)


def _file(module: types.ModuleType, names: Sequence[str] | None, seen: Seen) -> Iterator[bytes]:
    """Lists a user's module: its file and the used names, or everything in it."""
    yield module.__name__.encode()
    key = f"{module.__name__} {names}"
    if is_installed(module) or key in seen:
        return
    seen[key] = (len(seen), module)
    yield seen.text(getattr(module, "__file__", None), any_name=names is None)
    for name, value in list(vars(module).items()):
        if name not in names if names is not None else not _is_held(name, value, module):
            continue
        yield name.encode()
        with seen.inside(module.__name__):
            yield from _named(name, value, names, seen)


def _is_held(name: str, value: object, module: types.ModuleType) -> bool:
    """Returns whether a name refers to a module's own code or data."""
    if name.startswith("__"):
        return False
    if isinstance(value, types.ModuleType):
        return not is_installed(value)
    is_code = isinstance(value, types.FunctionType | type) and not is_installed(value)
    defined = getattr(value, "__module__", None) == module.__name__
    return is_code or defined or isinstance(value, _HOLDS_DATA)


def _imported(code: types.CodeType, package: str, seen: Seen) -> Iterator[bytes]:
    """Lists the user's modules that code imports when it runs, without importing them."""
    names = None if code_objects.reads_any_name(code) else code_objects.names(code)
    for wanted in code_objects.imports(code):
        named = None if "*" in wanted.parts else names
        try:
            name = importlib.util.resolve_name("." * wanted.level + wanted.name, package or None)
            for parent in accumulate(name.split("."), "{}.{}".format):
                yield from _module_as_imported(parent, named, seen)
        except ImportError:  # a guarded import, or one that will fail
            yield f"no module {wanted}".encode()
            continue
        for part in wanted.parts:
            with suppress(ImportError):
                yield from _module_as_imported(f"{name}.{part}", named, seen)


def _module_as_imported(name: str, names: Sequence[str] | None, seen: Seen) -> Iterator[bytes]:
    """Lists a loaded module as it is, and one that is not loaded yet by its file."""
    if name in sys.modules:
        yield from _file(sys.modules[name], names, seen)
        return
    if is_ours(name):
        return
    spec = _found(name)
    origin = spec.origin
    if origin in (None, "built-in", "frozen") or origin in seen or is_installed_path(origin):
        return
    seen[origin] = (len(seen), origin)
    yield name.encode()
    source = file_content(origin)
    yield source
    package = spec.name if spec.submodule_search_locations else spec.parent
    try:
        code = compile(source, origin, "exec")
    except (SyntaxError, ValueError) as broken:
        raise seen.unread(origin, f": {broken}") from broken
    if not source and not Path(origin).exists():  # inside of a zip file
        raise seen.unread(origin)
    seen.require_seen(code)
    yield from _imported(code, package or "", seen)


def _found(name: str) -> ModuleSpec:
    """Finds a module as an import would, without running its parent package."""
    parent = name.rpartition(".")[0]
    try:
        if parent:
            spec = PathFinder.find_spec(name, _found(parent).submodule_search_locations or [])
        else:
            spec = importlib.util.find_spec(name)
    except ValueError as unknown:
        raise ImportError(str(unknown)) from unknown
    if spec is None:
        raise ImportError(f"no module named {name}")
    return spec


@cache
def _own_source() -> bytes:
    """Hashes the code of shieldnet, since results change with it."""
    digest = sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()
