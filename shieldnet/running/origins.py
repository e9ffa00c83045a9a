"""Origins of code: the user, an installed package, or shieldnet."""

import sys
import sysconfig
import types
from pathlib import Path

_INSTALLED = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")
)


def is_installed(value: types.FunctionType | type | types.ModuleType) -> bool:
    """Returns whether an object belongs to Python, an installed package or shieldnet.

    A function belongs to the file of its code: the module of a notebook's function is the program
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
        return False  # loaded from a path
    path = getattr(module, "__file__", None)
    if path is None:  # a namespace package, or built into the interpreter
        return all(map(is_installed_path, getattr(module, "__path__", ())))
    return is_installed_path(path)


def is_ours(name: str) -> bool:
    """Returns whether a module belongs to shieldnet."""
    return str(name).split(".")[0] == "shieldnet"


def is_installed_path(path: str) -> bool:
    """Returns whether a file belongs to Python or an installed package."""
    return str(Path(path).resolve()).startswith(_INSTALLED)


def file_content(path: str | None) -> bytes:
    """Returns the content of a file, or nothing if there is none."""
    try:
        return b"" if path is None else Path(path).read_bytes()
    except OSError:
        return b""
