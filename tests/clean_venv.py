"""A virtual environment of a few installed packages and what these require, and nothing else."""

import re
import subprocess
import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement


def closure(*names: str) -> set[str]:
    """Lists the packages and all that these require here, by normalized name, without extras."""
    found: set[str] = set()
    open_names = list(names)
    while open_names:
        name = re.sub(r"[-_.]+", "-", open_names.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for line in distribution(name).requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                open_names.append(needed.name)
    return found


class CleanVenv:
    """Has the packages of this environment that are named, by links: made without a network.

    made_by_hand: a virtual environment into which pip really installed them, used as it is.
    expected: the normalized names of all that it should have.
    """

    def __init__(self, folder: Path, *names: str, made_by_hand: str | None = None) -> None:
        self.expected = closure(*names)
        self._python = Path(made_by_hand or folder).absolute() / "bin" / "python"
        if made_by_hand is None:
            self._link(folder)

    def _link(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        (site,) = folder.glob("lib/python*/site-packages")
        for name in self.expected:
            package = distribution(name)
            tops = {file.parts[0] for file in package.files or () if file.parts[0] != ".."}
            for top in tops - {"__pycache__"}:
                (site / top).symlink_to(Path(str(package.locate_file(top))).resolve())

    def run(self, script: str, folder: Path) -> str:
        """Runs a script in a folder, with nothing of this process's paths; returns its output."""
        command = [str(self._python), "-I", "-W", "ignore", "-c", script]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout
