"""A shield written down in TOML, and read back with exact error messages."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from shieldnet.core.checks import choice
from shieldnet.core.errors import ConfigError
from shieldnet.defenses import DEFENSES, Defense
from shieldnet.files.documents import read_toml
from shieldnet.shield.heads import before_each_head
from shieldnet.shield.module import Shield
from shieldnet.shield.preset_chains import PRESETS
from shieldnet.shield.settings import Extent, ShieldSettings

VERSION = 1
_SHAPE = ("outputs", "release", "axis", "drop", "micro_batch", "release_positions")
_OF_EXTENT = ("classes", "positions", "fields")
_SETTINGS = ("version", *_SHAPE, "extent", "preset", "defense", "also")
_FROM_ENVIRONMENT = "env:"


def load_shield(model: Any, path: str | Path, *, known: Sequence[type[Defense]] = ()) -> Shield:
    """Makes the shield that a TOML file describes, around ``model``.

    Either ``preset = "balanced"`` or ``[[defense]]`` tables, each with a ``name`` and settings;
    ``[[also.FIELD]]`` tables for other fields of the output. A key is never in the file:
    ``key = "env:NAME"`` reads it, as hexadecimal digits, from an environment variable.
    known: defenses of your own that the file may name, beside those of shieldnet.
    Errors: ConfigError with the unknown name and the known ones; DataError for an unreadable file.
    """
    kinds = _known(known)
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
    also = settings.get("also", {})
    if not isinstance(also, dict):
        raise ConfigError("Expected [[also.FIELD]] tables, each with a name and its settings.")
    shape = {name: settings[name] for name in _SHAPE if name in settings}
    if "extent" in settings:
        shape["extent"] = _extent(settings["extent"])
    defenses = tuple(_defenses(settings, kinds))
    shape["also"] = {name: _chain(tables, f"also.{name}", kinds) for name, tables in also.items()}
    if "preset" in settings:
        named = [shape.get(name) for name in ("outputs", "axis", "also", "drop")]
        shape["axis"], shape["also"] = before_each_head(defenses, *named)
    return Shield(model, *defenses, **shape)


def dump_shield(shield: Shield, *, known: Sequence[type[Defense]] = ()) -> str:
    """Writes a shield, without its model, as TOML that ``load_shield`` reads.

    known: defenses of your own that it may hold; ``load_shield`` takes the same.
    Errors: ConfigError for a defense with a secret key, which does not belong into a file.
    """
    import tomlkit

    settings, kinds = shield.settings, _known(known)
    also = {
        name: [_table(defense, kinds) for defense in defenses]
        for name, defenses in settings.also.items()
    }
    shown = {
        "version": VERSION,
        "outputs": None if settings.is_guess and not shield.vectors.done else _kinds(settings),
        "release": settings.release,
        "axis": settings.axis,
        "release_positions": None if settings.release_positions == "all" else "last",
        "drop": list(settings.drop) or None,
        "micro_batch": settings.micro_batch,
        "extent": None if settings.extent is None else _plain(settings.extent),
        "defense": [_table(defense, kinds) for defense in settings.defenses],
        "also": also or None,
    }
    return tomlkit.dumps(_without_none(shown))


def _kinds(settings: ShieldSettings) -> str | dict[str, str]:
    """Returns the kinds of the outputs in words.

    Assumed ones are written once answers have shown that they are no embeddings.
    """
    kinds = settings.outputs
    return dict(kinds) if isinstance(kinds, Mapping) else str(kinds)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out what is not set: TOML has no None."""
    plain = {name: dict(v) if isinstance(v, Mapping) else v for name, v in values.items()}
    return {name: value for name, value in plain.items() if value is not None}


def _plain(extent: Extent) -> dict[str, Any]:
    # False stands for a field that no answer has: TOML has no None.
    fields = {path: part is not None and _plain(part) for path, part in extent.fields.items()}
    plain = {"classes": extent.classes, "positions": list(extent.positions), "fields": fields}
    return {name: value for name, value in plain.items() if value}


def _extent(table: Any) -> Extent:
    if not isinstance(table, dict) or not {"classes"} <= table.keys() <= set(_OF_EXTENT):
        raise ConfigError(f"Expected extent = {{ classes = 10 }}, and {', '.join(_OF_EXTENT[1:])}.")
    positions, parts = table.get("positions", []), table.get("fields", {})
    if not (isinstance(positions, list) and isinstance(parts, dict)):
        raise ConfigError("Expected positions = [height, width] and fields as tables of extents.")
    fields = {path: None if part is False else _extent(part) for path, part in parts.items()}
    return Extent(table["classes"], tuple(positions), fields)


def _known(known: Sequence[type[Defense]]) -> dict[str, type[Defense]]:
    """Returns the defenses that a file may name: shieldnet's and these."""
    for kind in known:
        is_defense = isinstance(kind, type) and issubclass(kind, Defense)
        if not is_defense or DEFENSES.get(kind.__name__, kind) is not kind:
            raise ConfigError(
                f"Expected known as classes of defenses, none named as one of shieldnet's, got "
                f"{kind!r}."
            )
    return DEFENSES | {kind.__name__: kind for kind in known}


def _table(defense: Defense, kinds: Mapping[str, type[Defense]]) -> dict[str, Any]:
    if secrets := defense.secret:
        raise ConfigError(
            f"The {secrets[0]} of {type(defense).__name__} is secret and is not written to a "
            f'file. Write the table yourself, with {secrets[0]} = "env:NAME".'
        )
    kind = type(defense)
    if kinds.get(kind.__name__) is not kind:
        raise ConfigError(
            f"{kind.__name__} cannot be read back from a file. It can hold: {', '.join(kinds)}. "
            f"Name it with known=({kind.__name__},), here and where it is read."
        )
    return {"name": kind.__name__, **_without_none(asdict(defense))}


def _defenses(settings: dict[str, Any], kinds: Mapping[str, type[Defense]]) -> Sequence[Defense]:
    if "preset" in settings:
        return PRESETS[choice("preset", settings["preset"], tuple(PRESETS))]
    return _chain(settings["defense"], "defense", kinds)


def _chain(tables: Any, name: str, kinds: Mapping[str, type[Defense]]) -> tuple[Defense, ...]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"Expected [[{name}]] tables, each with a name and its settings.")
    return tuple(_defense(dict(table), kinds) for table in tables)


def _defense(table: dict[str, Any], kinds: Mapping[str, type[Defense]]) -> Defense:
    name = choice("name", table.pop("name", None), tuple(kinds))
    kind = kinds[name]
    known = [field.name for field in fields(kind)]
    for setting in table:
        if setting not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError(f"{name} has no setting {setting}. It has: {listed}.")
    for setting in kind.secret:
        if setting in table:
            table[setting] = _secret(setting, table[setting])
    try:
        return kind(**table)
    except TypeError as missing:
        raise ConfigError(f"{name} is missing a setting. It has: {', '.join(known)}.") from missing


def _secret(setting: str, value: object) -> bytes:
    """Reads a key from the environment variable that is named instead."""
    if not isinstance(value, str) or not value.startswith(_FROM_ENVIRONMENT):
        raise ConfigError(
            f'Expected {setting} = "env:NAME": a key does not belong into a file, but into an '
            "environment variable."
        )
    variable = value.removeprefix(_FROM_ENVIRONMENT)
    try:
        return bytes.fromhex(os.environ[variable])
    except (KeyError, ValueError):
        raise ConfigError(
            f"Expected hexadecimal digits in the environment variable {variable}."
        ) from None
