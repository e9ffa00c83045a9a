"""Shields that need no thought: strict, balanced, open, and the certified one."""

from collections.abc import Mapping, Sequence
from typing import Any

from shieldnet.core.checks import choice
from shieldnet.core.errors import ConfigError
from shieldnet.defenses import Defense
from shieldnet.outputs.adapters import as_module, default_kind
from shieldnet.outputs.layout import Kind, Positions
from shieldnet.shield.calibrated_presets import CALIBRATED, calibrated
from shieldnet.shield.heads import before_each_head
from shieldnet.shield.module import Shield
from shieldnet.shield.preset_chains import PRESETS
from shieldnet.shield.settings import Extent
from shieldnet.shield.written_out import example_for


def harden(
    model: Any,
    preset: str = "balanced",
    *,
    outputs: Kind | Mapping[str, Kind] | None = None,
    release: Kind | None = None,
    axis: int | Mapping[str, int] | None = None,
    also: Mapping[str, Sequence[Defense]] | None = None,
    drop: Sequence[str] = (),
    micro_batch: int | None = None,
    extent: Extent | None = None,
    release_positions: Positions = "all",
    example: Any = None,
    calibrate: Any = None,
) -> Shield:
    """Wraps ``model`` in a preset's shield; but for "certified", the winner never changes.

    model: a module, a fitted estimator, a session or a function of arrays, as of ``Shield``; a
    regressor needs ``calibrate``.
    preset: "strict", "balanced", "open" or "certified". The settings are those of ``Shield``;
    with ``example=x``, a few inputs, it is tried now whether rows change each other. Of several
    heads, ``outputs={"intent": "logits", "topic": "logits"}``, the preset stands before each; the
    first is the answer that is audited; heads of values and embeddings need defenses of their own,
    in ``also=`` or ``drop=``.
    calibrate: public inputs, 100 at least, for ``outputs="embeddings"`` or ``"values"``: the
    presets' range and step are measured on the answers about them, and are settings from then on
    (docs/choosing.md). They must not be private, as the settings tell of them.
    Errors: as ``Shield``; DataError for public rows that are too few or whose answers do not vary.
    """
    model = as_module(model)
    outputs = default_kind(model) if outputs is None else outputs
    if calibrate is not None:
        layout = {"outputs": outputs, "axis": axis, "also": also, "drop": drop}
        defenses = calibrated(model, preset, calibrate, **layout)
    else:
        defenses = PRESETS[choice("preset", preset, tuple(PRESETS))]
        if isinstance(outputs, str) and outputs in CALIBRATED:
            raise ConfigError(
                f"The presets of {outputs} measure their range on public rows: "
                f"sn.harden(model, {preset!r}, outputs={outputs!r}, calibrate=public_rows). Or "
                f"choose it: sn.Shield(model, *{example_for(outputs)}, outputs={outputs!r})."
            )
    axis, also = before_each_head(defenses, outputs, axis, also, drop)
    return Shield(
        model,
        *defenses,
        outputs=outputs,
        release=release,
        axis=axis,
        also=also,
        drop=drop,
        micro_batch=micro_batch,
        extent=extent,
        release_positions=release_positions,
        example=example,
    )
