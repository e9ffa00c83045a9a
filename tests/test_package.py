import subprocess
import sys

import pytest

import shieldnet


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_importing_shieldnet_imports_nothing_else() -> None:
    code = (
        "import sys, shieldnet; heavy = {'torch', 'numpy', 'opacus', 'captum', 'matplotlib', "
        "'typer', 'sklearn', 'scipy'}; print(heavy & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_hardening_needs_neither_captum_nor_scipy_nor_pictures() -> None:
    code = (
        "import sys, torch, shieldnet as sn; s = sn.harden(torch.nn.Linear(3, 4)); "
        "s(torch.zeros(2, 3)); s.certificate(); "
        "print({'captum', 'opacus', 'matplotlib', 'scipy', 'jinja2'} & set(sys.modules) "
        "- set())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize("name", shieldnet.__all__)
def test_every_public_name_loads_and_is_documented(name: str) -> None:
    thing = getattr(shieldnet, name)
    assert isinstance(thing, float) or thing.__doc__


def test_the_lazy_table_and_the_public_names_are_one_list() -> None:
    assert sorted(shieldnet._ROOM_OF) == sorted(shieldnet.__all__)


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match="shieldnet has no Sheild. It has: .*Shield"):
        shieldnet.Sheild  # noqa: B018 - the access itself must raise


def test_no_room_hides_a_public_name() -> None:
    """Importing a room sets it as an attribute of the package, over a function of that name."""
    code = (
        "import pkgutil, importlib, shieldnet\n"
        "for room in pkgutil.walk_packages(shieldnet.__path__, 'shieldnet.'):\n"
        "    if not room.name.endswith('__main__'): importlib.import_module(room.name)\n"
        "import types; names = shieldnet.__all__\n"
        "print([n for n in names if isinstance(getattr(shieldnet, n), types.ModuleType)])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
