"""The command line without a process of its own, which would take seconds to load torch."""

import contextlib
import io
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from shieldnet.__main__ import main


@dataclass(frozen=True)
class Finished:
    returncode: int
    stdout: str
    stderr: str


def shieldnet(folder: Path, *arguments: str, **environment: str) -> Finished:
    """Runs a command in a folder, and takes back what it left in this process."""
    out, err = io.StringIO(), io.StringIO()
    log = logging.getLogger("shieldnet")
    kept, handlers, level = set(sys.modules), log.handlers[:], log.level
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setattr(sys, "argv", ["shieldnet", *arguments])
        for name, value in {"COLUMNS": "200", **environment}.items():
            patch.setenv(name, value)
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            log.handlers[:] = handlers
            log.setLevel(level)
            for name in set(sys.modules) - kept:
                place = getattr(sys.modules[name], "__file__", None) or ""
                if Path(place).is_relative_to(folder):
                    del sys.modules[name]
    return Finished(int(code or 0), out.getvalue(), err.getvalue())
