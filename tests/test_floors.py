"""Folders import from lower floors alone, and files of a folder never in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import shieldnet

HOUSE = Path(shieldnet.__file__).parent
FLOORS = (
    {"runtime"},
    {"core"},
    {"findings", "data", "outputs"},
    {"privacy", "running"},
    {"files", "defenses"},
    {"shield"},
    {"training", "exporting"},
    {"attacks"},
    {"checks"},
    {"gate"},
    {"reports"},
    {"shipping"},
    {"serving"},
    {"auditing"},
    {"demo", "pytest_plugin"},
    {"cli"},
    {"__init__", "__main__"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FILES = {
    ".".join(path.relative_to(HOUSE).with_suffix("").parts): path for path in HOUSE.rglob("*.py")
}


def imported(path: Path) -> set[str]:
    """Lists the files of the house that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        ours = [name for name in names if name.startswith("shieldnet.")]
        inside = [name.removeprefix("shieldnet.") for name in ours]
        found |= set(inside) & FILES.keys() or {f"{name}.__init__" for name in inside[:1]}
        found |= {"__init__"} if "shieldnet" in names else set()
    return found


def test_every_folder_has_a_floor() -> None:
    assert {name.split(".")[0] for name in FILES} == set(FLOOR_OF)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_imports_from_its_own_folder_or_from_lower_floors(name: str) -> None:
    own = name.split(".")[0]
    wrong = [
        other
        for other in imported(FILES[name])
        if other.split(".")[0] != own and FLOOR_OF[other.split(".")[0]] >= FLOOR_OF[own]
    ]
    assert not wrong, f"{name} imports from its own floor or above: {wrong}"


def test_no_files_import_each_other_in_a_circle() -> None:
    TopologicalSorter({name: imported(path) for name, path in FILES.items()}).prepare()


def test_every_file_says_in_its_first_line_what_it_is() -> None:
    for name, path in FILES.items():
        assert ast.get_docstring(ast.parse(path.read_text())), name
