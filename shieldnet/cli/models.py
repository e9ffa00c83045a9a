"""The shield that a command line names: a served one, a file's, or a preset's."""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from shieldnet.shield.module import Shield

_EXAMPLES = {
    "values": "ClipRange (low, high), then RoundTo (step)",
    "embeddings": "ClipNorm (bound), then GaussianNoise (scale)",
}


def loaded_shield(
    model: str,
    weights: str | None,
    preset: str | None,
    shield_file: Path | None,
    outputs: str | None,
    axis: int | None,
    release_positions: str | None,
) -> "tuple[str, Shield]":
    """Returns the shield with its name in the report."""
    from shieldnet.core.checks import choice
    from shieldnet.core.errors import ConfigError
    from shieldnet.files.sources import load_model
    from shieldnet.outputs.layout import MODEL_KINDS, Positions
    from shieldnet.shield.module import Shield
    from shieldnet.shield.presets import harden
    from shieldnet.shield.toml import load_shield

    is_described = bool(preset or outputs or axis is not None or release_positions)
    if shield_file is not None and is_described:
        raise ConfigError(
            "The file of --shield says it all: leave --preset, --outputs, --axis and "
            "--release-positions out."
        )
    positions = choice("release_positions", release_positions or "all", get_args(Positions))
    kind = None if outputs is None else choice("outputs", outputs, MODEL_KINDS)
    loaded = load_model(model, weights)
    if isinstance(loaded, Shield):
        if shield_file is not None or is_described:
            raise ConfigError(
                f"{model} is a Shield already, which is judged as it is served: leave --preset, "
                "--shield, --outputs, --axis and --release-positions out, or name a function that "
                "returns the model."
            )
        return "served", loaded
    if shield_file is not None:
        return shield_file.stem, load_shield(loaded, shield_file)
    preset = preset or "balanced"
    if kind in ("values", "embeddings"):
        raise ConfigError(
            f"No preset fits {kind}, whose range is not known. Write the defenses into a file for "
            f'--shield: version = 1, outputs = "{kind}", and a [[defense]] for each, such as '
            f"{_EXAMPLES[kind]}."
        )
    shield = harden(
        loaded,
        preset,
        outputs=kind,  # type: ignore[arg-type]  # checked
        axis=axis,
        release_positions=positions,  # type: ignore[arg-type]  # checked
    )
    return preset, shield
