"""A shield written down in TOML, and read back with exact error messages."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import nn

from shieldnet._validate import choice, read_toml
from shieldnet.defenses import DEFENSES, Defense
from shieldnet.errors import ConfigError
from shieldnet.presets import PRESETS
from shieldnet.shield import Shield

VERSION = 1
_SETTINGS = ("version", "outputs", "release", "preset", "defense")


def load_shield(model: nn.Module, path: str | Path) -> Shield:
    """Makes the shield that a TOML file describes, around ``model``.

    Either ``preset = "balanced"`` or ``[[defense]]`` tables, each with a ``name`` and settings.
    Errors: ConfigError with the unknown name and the known ones; DataError for an unreadable file.
    """
    settings = read_toml(path)
    for name in settings:
        if name not in _SETTINGS:
            raise ConfigError(f"A shield has no setting {name}. It has: {', '.join(_SETTINGS)}.")
    if settings.get("version") != VERSION or settings["version"] is True:
        raise ConfigError(
            f"Expected version = {VERSION} in {path}, got {settings.get('version', 'none')}."
        )
    if ("preset" in settings) == ("defense" in settings):
        raise ConfigError(f"Expected either preset or [[defense]] in {path}.")
    return Shield(
        model,
        *_defenses(settings),
        outputs=settings.get("outputs", "logits"),
        release=settings.get("release"),
    )


def dump_shield(shield: Shield) -> str:
    """Writes a shield, without its model, as TOML that ``load_shield`` reads."""
    lines = [
        f"version = {VERSION}",
        f'outputs = "{shield.outputs}"',
        f'release = "{shield.release}"',
    ]
    if not shield.defenses:
        lines.append("defense = []")
    for defense in shield.defenses:
        lines += ["", "[[defense]]", f'name = "{type(defense).__name__}"']
        lines += [f"{name} = {json.dumps(value)}" for name, value in asdict(defense).items()]
    return "\n".join(lines) + "\n"


def _defenses(settings: dict[str, Any]) -> tuple[Defense, ...]:
    if "preset" in settings:
        return PRESETS[choice("preset", settings["preset"], tuple(PRESETS))]
    tables = settings["defense"]
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError("Expected [[defense]] tables, each with a name and its settings.")
    return tuple(_defense(dict(table)) for table in tables)


def _defense(table: dict[str, Any]) -> Defense:
    name = choice("name", table.pop("name", None), tuple(DEFENSES))
    kind = DEFENSES[name]
    known = [field.name for field in fields(kind)]
    for setting in table:
        if setting not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError(f"{name} has no setting {setting}. It has: {listed}.")
    try:
        return kind(**table)
    except TypeError as missing:
        raise ConfigError(f"{name} is missing a setting. It has: {', '.join(known)}.") from missing
