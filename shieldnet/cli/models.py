"""The shield that a command line names, and the inputs that it is asked with."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from torch import nn

    from shieldnet.shield.module import Shield

_EXAMPLES = {
    "values": "ClipRange (low, high), then RoundTo (step)",
    "embeddings": "ClipNorm (bound), then GaussianNoise (scale)",
}
_DESCRIBING = "--preset, --outputs, --axis, --calibrate and --release-positions"


def loaded_shield(
    model: str,
    weights: str | None,
    preset: str | None,
    shield_file: Path | None,
    outputs: str | None,
    axis: int | None,
    release_positions: str | None,
    calibrate: str | None,
    label: str | None = None,
) -> "tuple[str, Shield]":
    """Returns the shield with its name in the report. label: column of the public rows' label."""
    from shieldnet.core.checks import choice
    from shieldnet.core.errors import ConfigError
    from shieldnet.files.sources import load_model
    from shieldnet.outputs.adapters import default_kind
    from shieldnet.outputs.layout import MODEL_KINDS, Positions
    from shieldnet.shield.module import Shield
    from shieldnet.shield.presets import harden
    from shieldnet.shield.toml import load_shield

    described = (preset, outputs, axis, release_positions, calibrate)
    is_described = any(setting is not None for setting in described)
    if shield_file is not None and is_described:
        raise ConfigError(f"The file of --shield says it all: leave {_DESCRIBING} out.")
    positions = choice("release_positions", release_positions or "all", get_args(Positions))
    kind = None if outputs is None else choice("outputs", outputs, MODEL_KINDS)
    loaded = load_model(model, weights)
    if isinstance(loaded, Shield):
        if shield_file is not None or is_described:
            raise ConfigError(
                f"{model} is a Shield already, which is judged as it is served: leave --shield, "
                f"{_DESCRIBING} out, or name a function that returns the model."
            )
        return "served", loaded
    if shield_file is not None:
        return shield_file.stem, load_shield(loaded, shield_file)
    preset = preset or "balanced"
    kind = default_kind(loaded) if kind is None else kind
    if kind in _EXAMPLES and calibrate is None:
        raise ConfigError(
            f"The presets of {kind} measure their range on public rows: give --calibrate "
            "public.npz (or a .csv). Or write the defenses into a file for --shield: version = 1, "
            f'outputs = "{kind}", and a [[defense]] for each, such as {_EXAMPLES[kind]}.'
        )
    shield = harden(
        loaded,
        preset,
        outputs=kind,  # type: ignore[arg-type]  # checked
        axis=axis,
        release_positions=positions,  # type: ignore[arg-type]  # checked
        calibrate=None if calibrate is None else inputs_of(calibrate, "public rows", loaded, label),
    )
    return preset, shield


def inputs_of(
    name: str, role: str, model: "nn.Module", label: str | None = None, *, most: int | None = None
) -> Any:
    """Reads inputs, at most so many, as the model takes them: fractions in its own float type.

    role: what they are, for messages. label: column of a table that is no input.
    """
    from shieldnet.data.examples import Examples

    read = _read(name, role, model, label)
    return read.in_own_form(slice(most))[0] if isinstance(read, Examples) else read[:most]


def require_public(
    name: str, sets: Mapping[str, Any], model: "nn.Module", label: str | None
) -> None:
    """Refuses public rows of which most are members or nonmembers: the settings tell of them.

    sets: those of an audit, by role.
    """
    from shieldnet.core.errors import ConfigError

    public = _different_rows(_read(name, "public rows", model, label))
    for role in ("members", "nonmembers"):
        shared = public & _different_rows(_as_taken(sets[role], role, model))
        if len(shared) > len(public) / 2:
            raise ConfigError(
                f"{len(shared)} of {len(public)} different rows of --calibrate are {role}: range "
                "and step are settings, which tell of the rows that they were measured on. Give "
                "public rows that are in neither set."
            )


def _read(name: str, role: str, model: "nn.Module", label: str | None) -> Any:
    from shieldnet.files.frames import read_frame
    from shieldnet.files.sources import load_examples
    from shieldnet.files.tables import is_table
    from shieldnet.outputs.estimators import Estimator

    own = model if isinstance(model, Estimator) else None
    if own is not None and own.columns is not None and is_table(Path(name)):
        return own.columns_of(read_frame(Path(name), role), role)
    loaded = load_examples(name, role, label=label, as_records=own is not None, targets=None)
    return _as_taken(loaded.examples, role, model)


def _as_taken(found: Any, role: str, model: "nn.Module") -> Any:
    """Returns a set as the model takes it: Examples, or for an estimator its own columns."""
    from shieldnet.auditing.sets import as_the_model_reads
    from shieldnet.data.examples import Examples
    from shieldnet.outputs.estimators import Estimator

    if isinstance(found, Examples):
        return as_the_model_reads({role: found}, model)[role]
    if isinstance(model, Estimator) and hasattr(found.inputs, "iloc"):
        return model.columns_of(found.inputs, role)
    return found.inputs


def _different_rows(rows: Any) -> set[Any]:
    """Names every different row by its content."""
    from shieldnet.data.examples import Examples, row_bytes

    if isinstance(rows, Examples):
        return set(row_bytes(rows))
    import pandas as pd

    return set(pd.util.hash_pandas_object(pd.DataFrame(rows).astype(str), index=False))
