"""Shields that need no thought: strict, balanced, open, and the certified one."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from shieldnet.core.checks import choice
from shieldnet.defenses import Confidence, Defense, Label, RandomizedResponse, Round, TopK
from shieldnet.outputs.layout import Kind
from shieldnet.shield.module import Shield
from shieldnet.shield.settings import Extent

PRESETS: MappingProxyType[str, tuple[Defense, ...]] = MappingProxyType(
    {
        "strict": (Label(),),
        "balanced": (Confidence(bins=4),),
        "open": (TopK(3, or_all=True), Round(1)),
        "certified": (RandomizedResponse(6.0),),
    }
)
"""strict: the label. balanced: the top class and 4 bins of confidence. open: top 3, one decimal.
certified: the label by randomized response, (6, 0)-differentially private in the input.
"""


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
    example: Any = None,
) -> Shield:
    """Wraps ``model`` in a preset's shield; but for "certified", the winner never changes.

    model: a module, a fitted estimator, a session or a function of arrays, as of ``Shield``.
    preset: "strict", "balanced", "open" or "certified". The settings are those of ``Shield``;
    with ``example=x``, a few inputs, it is tried now whether rows change each other. For values
    and embeddings there are no presets, as a range or step has to be chosen.
    """
    return Shield(
        model,
        *PRESETS[choice("preset", preset, tuple(PRESETS))],
        outputs=outputs,
        release=release,
        axis=axis,
        also=also,
        drop=drop,
        micro_batch=micro_batch,
        extent=extent,
        example=example,
    )
