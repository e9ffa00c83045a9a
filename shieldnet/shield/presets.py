"""Shields that need no thought: strict, balanced, open, and the certified one."""

from collections.abc import Mapping, Sequence
from typing import Any

from shieldnet.core.checks import choice
from shieldnet.defenses import Defense
from shieldnet.outputs.layout import Kind, Positions
from shieldnet.shield.heads import before_each_head
from shieldnet.shield.module import Shield
from shieldnet.shield.preset_chains import PRESETS
from shieldnet.shield.settings import Extent


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
) -> Shield:
    """Wraps ``model`` in a preset's shield; but for "certified", the winner never changes.

    model: a module, a fitted estimator, a session or a function of arrays, as of ``Shield``.
    preset: "strict", "balanced", "open" or "certified". The settings are those of ``Shield``;
    with ``example=x``, a few inputs, it is tried now whether rows change each other. Of several
    heads, ``outputs={"intent": "logits", "topic": "logits"}``, the preset stands before each; the
    first is the answer that is audited. For values and embeddings there are no presets, as a range
    or step has to be chosen: ``also=`` or ``drop=``.
    """
    defenses = PRESETS[choice("preset", preset, tuple(PRESETS))]
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
