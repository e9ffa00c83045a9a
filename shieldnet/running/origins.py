"""Where code comes from: the user, an installed package, or this one."""

import sys
import sysconfig
import types
from pathlib import Path

_INSTALLED = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")
)


def is_installed(value: types.FunctionType | type | types.ModuleType) -> bool:
    """Says whether something belongs to Python, to an installed package or to this one.

    A function is where its code was written: what a notebook defines has the module of the program
    that runs the notebook.
    """
    name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    if is_ours(name):
        return True
    if isinstance(value, types.FunctionType):
        return is_installed_path(value.__code__.co_filename)
    if name == "__main__":
        return False
    module = value if isinstance(value, types.ModuleType) else sys.modules.get(name)
    if module is None:
        return False  # loaded by its path
    path = getattr(module, "__file__", None)
    if path is None:  # of several folders, or built into the interpreter
        return all(map(is_installed_path, getattr(module, "__path__", ())))
    return is_installed_path(path)


def is_ours(name: str) -> bool:
    """Says whether a module is this package's."""
    return str(name).split(".")[0] == "shieldnet"


def is_installed_path(path: str) -> bool:
    """Says whether a file belongs to Python or to an installed package."""
    return str(Path(path).resolve()).startswith(_INSTALLED)


def file_content(path: str | None) -> bytes:
    """Returns the whole file that something is defined in, nothing where there is no file."""
    try:
        return b"" if path is None else Path(path).read_bytes()
    except OSError:
        return b""
