"""Static analysis of code objects: content, names and imports, without running them."""

import dis
import types
from collections.abc import Collection, Iterator
from itertools import pairwise
from modulefinder import ModuleFinder
from typing import NamedTuple

UNSEEN = (eval, exec, globals, __import__)
"""Functions that read names which do not appear in the code."""
_UNSEEN_NAMES = tuple(function.__name__ for function in UNSEEN)
_UNSEEN_ATTRIBUTES = ("__globals__", "_getframe", "f_globals")
_READS_ANY = ("getattr", "vars", "__dict__")


class Import(NamedTuple):
    """Holds an import. parts: names taken from the module; level: dots before its name."""

    name: str
    parts: tuple[str, ...]
    level: int


def content(code: types.CodeType) -> Iterator[bytes]:
    """Lists the content of code; unlike marshal, with the same bytes every time."""
    yield code.co_code
    yield getattr(code, "co_exceptiontable", b"")  # from Python 3.11 on
    counts = (code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    yield repr((counts, code.co_names, code.co_varnames, code.co_freevars)).encode()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from content(constant)
        elif isinstance(constant, frozenset):
            yield repr(sorted(map(repr, constant))).encode()
        else:
            yield repr(constant).encode()
    yield b"\0code"


def names(code: types.CodeType) -> tuple[str, ...]:
    """Lists all names in code, including nested functions."""
    inside = (name for part in _parts(code) for name in names(part))
    return (*code.co_names, *inside)


def reads_any_name(code: types.CodeType) -> bool:
    """Returns whether code may read attributes that it does not name."""
    return any(name in _READS_ANY for name in names(code))


def imports(code: types.CodeType) -> Iterator[Import]:
    """Lists the imports in code, including nested functions."""
    for kind, details in ModuleFinder().scan_opcodes(code):
        if kind == "absolute_import":
            yield Import(details[1] or "", details[0] or (), 0)
        elif kind == "relative_import":
            yield Import(details[2] or "", details[1] or (), details[0])
    for part in _parts(code):
        yield from imports(part)


def unseen(code: types.CodeType, known: Collection[str] = ()) -> list[str]:
    """Lists what code uses to read something which no name in it shows.

    known: names that the user defined in the code's module, so that they are no built-ins.
    """
    named, own = names(code), {*known, *_defined(code)}
    is_importing = "import_module" in named and (
        "importlib" in named or any(part.name == "importlib" for part in imports(code))
    )
    is_searching = _reads(code, "sys", "path") or any(
        part.name == "sys" and "path" in part.parts for part in imports(code)
    )
    return [
        *(name for name in _globals_read(code) if name in _UNSEEN_NAMES and name not in own),
        *(name for name in named if name in _UNSEEN_ATTRIBUTES),
        *(["import_module"] if is_importing else []),
        *(["sys.path"] if is_searching else []),
    ]


def _parts(code: types.CodeType) -> list[types.CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _globals_read(code: types.CodeType) -> Iterator[str]:
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(step.argval)
    for part in _parts(code):
        yield from _globals_read(part)


def _reads(code: types.CodeType, owner: str, attribute: str) -> bool:
    """Returns whether code reads an attribute of a name."""
    steps = [str(step.argval) for step in dis.get_instructions(code)]
    return (owner, attribute) in pairwise(steps) or any(
        _reads(part, owner, attribute) for part in _parts(code)
    )


def _defined(code: types.CodeType) -> set[str]:
    """Lists the names that a module's code assigns."""
    steps = dis.get_instructions(code)
    return {str(step.argval) for step in steps if step.opname in ("STORE_NAME", "STORE_GLOBAL")}
