"""Three shields that need no thought: strict, balanced, open."""

from types import MappingProxyType

from torch import nn

from shieldnet._validate import choice
from shieldnet.answers import Kind
from shieldnet.defenses import Confidence, Defense, Label, Round, TopK
from shieldnet.shield import Shield

PRESETS: MappingProxyType[str, tuple[Defense, ...]] = MappingProxyType(
    {
        "strict": (Label(),),
        "balanced": (Confidence(bins=4),),
        "open": (TopK(3, or_all=True), Round(1)),
    }
)
"""strict: the label. balanced: the top class and 4 bins of confidence. open: top 3, one decimal."""


def harden(
    model: nn.Module,
    preset: str = "balanced",
    *,
    outputs: Kind = "logits",
    release: Kind | None = None,
) -> Shield:
    """Wraps ``model`` in a preset's shield; the winning class never changes.

    preset: "strict", "balanced" or "open". outputs, release: as in ``Shield``.
    """
    name = choice("preset", preset, tuple(PRESETS))
    return Shield(model, *PRESETS[name], outputs=outputs, release=release)
