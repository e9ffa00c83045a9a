"""shieldnet: every answer has a cost, and every claim has an adversary who tried to break it."""

from importlib import import_module
from typing import Any

import lazy_loader

__version__ = "0.1.0"

_NAMESPACES = {
    "countermeasures": "training.countermeasures",
    "errors": "core.errors",
    "metrics": "findings.metrics",
    "trainable": "training.trainable",
}
# Public names are listed in __init__.pyi and loaded on first use.
_load, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Loads a public name on first use: importing shieldnet imports nothing else."""
    if name in _NAMESPACES:
        return import_module(f"shieldnet.{_NAMESPACES[name]}")
    if name in __all__:
        return _load(name)
    raise AttributeError(
        f"shieldnet has no {name}. It has: {', '.join(__all__)}; more is in its namespaces, such "
        "as errors.ConfigError, attacks.Inversion and countermeasures.Augment."
    )


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
