import subprocess
import sys
from pathlib import Path

import pytest
import torch

import shieldnet
from shieldnet.defenses.named import _numbers


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


def test_hardening_needs_neither_captum_nor_scipy_nor_pictures_nor_the_compiler() -> None:
    code = (
        "import sys, torch, shieldnet as sn; "
        "[sn.harden(torch.nn.Linear(3, 4), preset=name)(torch.zeros(2, 3)) "
        "for name in ('strict', 'balanced', 'open')]; "
        "noise = sn.ClipNorm(1.0), sn.GaussianNoise(scale=1.0); "
        "sn.Shield(torch.nn.Linear(3, 4), *noise).certificate(classes=4); "
        "[getattr(sn, name) for name in sn.__all__]; "
        "print({'captum', 'opacus', 'matplotlib', 'scipy', 'jinja2', 'torch._dynamo'} "
        "& set(sys.modules))"
    )
    assert run(code).stdout.strip() == "set()"


def test_the_mark_of_a_constant_is_the_one_that_torch_sets() -> None:
    marked = torch.compiler.assume_constant_result(lambda: 0)
    assert vars(_numbers).items() >= vars(marked).items() > set()


@pytest.mark.parametrize("name", shieldnet.__all__)
def test_every_public_name_loads_and_is_documented(name: str) -> None:
    thing = getattr(shieldnet, name)
    assert isinstance(thing, float) or thing.__doc__


def test_namespaces_hold_what_they_are_called_for() -> None:
    assert issubclass(shieldnet.errors.ConfigError, shieldnet.errors.ShieldnetError)
    assert issubclass(shieldnet.attacks.Inversion, shieldnet.attacks.Attack)
    assert issubclass(shieldnet.checks.Masking, shieldnet.checks.Check)
    assert not issubclass(shieldnet.checks.Masking, shieldnet.attacks.Attack)
    kinds = (shieldnet.countermeasures.Augment, shieldnet.DPSGD)
    assert all(issubclass(kind, shieldnet.countermeasures.Countermeasure) for kind in kinds)
    assert issubclass(shieldnet.trainable.LoRA, shieldnet.trainable.Trainable)
    assert shieldnet.metrics.Limit("max_told", 0.1, "").name == "max_told"


def test_a_program_that_checks_types_sees_every_name() -> None:
    stub = (Path(shieldnet.__file__).parent / "__init__.pyi").read_text()
    assert all(f"import {name} as {name}\n" in stub for name in shieldnet.__all__)


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
        "modules = [n for n in names if isinstance(getattr(shieldnet, n), types.ModuleType)]\n"
        "print(sorted(modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    namespaces = [
        "attacks",
        "checks",
        "countermeasures",
        "errors",
        "metrics",
        "serving",
        "trainable",
    ]
    assert result.stdout.strip() == str(namespaces)
