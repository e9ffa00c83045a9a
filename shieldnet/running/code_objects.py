"""What can be told of code without running it: its content, what it names, what it imports."""

import dis
import types
from collections.abc import Collection, Iterator
from itertools import pairwise
from modulefinder import ModuleFinder
from typing import NamedTuple

from shieldnet.core.errors import ConfigError

UNSEEN = (eval, exec, globals, __import__)
"""What reads names that stand in no code."""
_UNSEEN_NAMES = tuple(function.__name__ for function in UNSEEN)
_UNSEEN_ATTRIBUTES = ("__globals__", "_getframe", "f_globals")
_READS_ANY = ("getattr", "vars", "__dict__")


class Import(NamedTuple):
    """What a statement imports. parts: what it takes of the module; level: dots before the name."""

    name: str
    parts: tuple[str, ...]
    level: int


def content(code: types.CodeType) -> Iterator[bytes]:
    """Lists what code does; marshal would write the same code in other bytes another time."""
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
    """Lists all that code names, functions inside of it included."""
    inside = (name for part in _parts(code) for name in names(part))
    return (*code.co_names, *inside)


def reads_any_name(code: types.CodeType) -> bool:
    """Says whether code may read attributes that it does not name."""
    return any(name in _READS_ANY for name in names(code))


def imports(code: types.CodeType) -> Iterator[Import]:
    """Lists what code imports when it runs, functions inside of it included."""
    for kind, details in ModuleFinder().scan_opcodes(code):
        if kind == "absolute_import":
            yield Import(details[1] or "", details[0] or (), 0)
        elif kind == "relative_import":
            yield Import(details[2] or "", details[1] or (), details[0])
    for part in _parts(code):
        yield from imports(part)


def require_seen(code: types.CodeType, known: Collection[str] = ()) -> None:
    """Raises ConfigError for code that reads what no name in it tells.

    known: names that are the user's own where the code stands, whatever they are called.
    """
    named, own = names(code), {*known, *_defined(code)}
    is_importing = "import_module" in named and (
        "importlib" in named or any(part.name == "importlib" for part in imports(code))
    )
    is_searching = _reads(code, "sys", "path") or any(
        part.name == "sys" and "path" in part.parts for part in imports(code)
    )
    unseen = [
        *(name for name in _globals_read(code) if name in _UNSEEN_NAMES and name not in own),
        *(name for name in named if name in _UNSEEN_ATTRIBUTES),
        *(["import_module"] if is_importing else []),
        *(["sys.path"] if is_searching else []),
    ]
    if unseen:
        raise ConfigError(unseen_text(code.co_name, unseen[0]))


def unseen_text(user: str, used: str) -> str:
    """Says why a result is not kept that depends on what code makes up when it runs."""
    return (
        f"{user} uses {used}, so what it reads cannot be told before it runs, and no result that "
        "depends on it is kept. Leave cache out, or name what it reads."
    )


def _parts(code: types.CodeType) -> list[types.CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _globals_read(code: types.CodeType) -> Iterator[str]:
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(step.argval)
    for part in _parts(code):
        yield from _globals_read(part)


def _reads(code: types.CodeType, owner: str, attribute: str) -> bool:
    """Says whether code reads an attribute of what it calls so."""
    steps = [str(step.argval) for step in dis.get_instructions(code)]
    return (owner, attribute) in pairwise(steps) or any(
        _reads(part, owner, attribute) for part in _parts(code)
    )


def _defined(code: types.CodeType) -> set[str]:
    """Lists the names that a module's code gives to something."""
    steps = dis.get_instructions(code)
    return {str(step.argval) for step in steps if step.opname in ("STORE_NAME", "STORE_GLOBAL")}
