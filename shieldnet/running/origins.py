"""Origins of code: the user, an installed package, or shieldnet."""

import csv
import json
import os
import site
import sys
import sysconfig
import types
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import Distribution, distributions
from pathlib import Path

_LIBRARIES = ("site-packages", "dist-packages")
"""Names of the folders that packages are installed into."""


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
    """Returns whether a file belongs to Python or an installed package, wherever that lies.

    A package is installed if it lies in a folder of packages that is on ``sys.path``, of this
    interpreter or another, or if a package's list of installed files has it. An editable package is
    the user's.
    """
    searched = tuple(os.path.abspath(folder) for folder in sys.path if isinstance(folder, str))
    return _is_installed(os.path.abspath(path), searched)


@lru_cache(maxsize=4096)
def _is_installed(path: str, searched: tuple[str, ...]) -> bool:
    real, libraries = Path(path).resolve(), _libraries(searched)
    if any(real.is_relative_to(folder) for folder in libraries):
        return True
    others = tuple(folder for folder in searched if Path(folder).resolve() not in libraries)
    # A file may be linked into a folder of packages, as uv does with --link-mode symlink.
    linked = tuple(folder for folder in searched if Path(path).is_relative_to(folder))
    return str(real) in _recorded(others) or path in _recorded(linked)


@lru_cache(maxsize=8)
def _libraries(searched: tuple[str, ...]) -> tuple[Path, ...]:
    """Lists the folders of Python itself, and those that packages are installed into."""
    ours = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    beside = (folder for folder in searched if Path(folder).name in _LIBRARIES)
    every = (*ours, os.path.dirname(os.__file__), site.getusersitepackages(), *beside)
    return tuple(dict.fromkeys(Path(folder).resolve() for folder in every))


@lru_cache(maxsize=64)
def _recorded(searched: tuple[str, ...]) -> frozenset[str]:
    """Lists the files that packages in these folders say they installed, the real ones and links.

    pip install --target installs into a folder of any name.
    """
    return frozenset(
        file
        for package in distributions(path=list(searched))
        if not _is_editable(package)
        for file in _files_of(package)
    )


def _files_of(package: Distribution) -> Iterator[str]:
    # Only RECORD lists what was installed: the SOURCES.txt of a working copy is the user's.
    folder = os.path.abspath(str(package.locate_file("")))
    for row in csv.reader((package.read_text("RECORD") or "").splitlines()):
        if row:
            yield os.path.normpath(os.path.join(folder, row[0]))
            yield os.path.normpath(os.path.join(os.path.realpath(folder), row[0]))


def _is_editable(package: Distribution) -> bool:
    """Returns whether a package is used from the folder that its user edits."""
    try:
        origin = json.loads(package.read_text("direct_url.json") or "{}")
        return bool(origin.get("dir_info", {}).get("editable"))
    except (ValueError, AttributeError):  # damaged
        return False


def file_content(path: str | None) -> bytes:
    """Returns the content of a file, or nothing if there is none."""
    try:
        return b"" if path is None else Path(path).read_bytes()
    except OSError:
        return b""
