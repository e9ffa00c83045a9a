"""The defenses of each preset."""

from types import MappingProxyType

from shieldnet.defenses import Confidence, Defense, Label, RandomizedResponse, Round, TopK

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
