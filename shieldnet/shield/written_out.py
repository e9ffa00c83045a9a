"""Defenses as they are written in code, for messages whose lines run."""

from collections.abc import Sequence

from shieldnet.core.errors import ConfigError
from shieldnet.defenses import DEFENSES, Chain, Defense
from shieldnet.outputs.layout import Kind

_EXAMPLES: dict[str, str] = {
    "values": "(sn.ClipRange(0.0, 1.0), sn.RoundTo(0.1))",
    "embeddings": "(sn.ClipNorm(1.0), sn.GaussianNoise(0.03))",
}
_LIKELY: tuple[Kind, ...] = ("logits", "values", "embeddings")


def named(defense: Defense) -> str:
    """Writes a defense as code that follows ``import shieldnet as sn``."""
    known = DEFENSES.get(type(defense).__name__) is type(defense)
    return f"sn.{defense!r}" if known else repr(defense)


def in_code(defenses: Sequence[Defense]) -> str:
    """Writes a tuple of defenses."""
    inside = ", ".join(map(named, defenses))
    return f"({inside},)" if len(defenses) == 1 else f"({inside})"


def example_for(kind: Kind, defenses: Sequence[Defense] = ()) -> str:
    """Writes defenses for one more field of a kind: an example, or those of the answer."""
    if kind in _EXAMPLES:
        return _EXAMPLES[kind]
    return in_code(defenses) if defenses else "(sn.Label(),)"


def kind_for(defenses: Sequence[Defense], main: Kind) -> Kind:
    """Returns a kind that defenses can act on: that of the answer where they fit it."""
    for kind in (main, *_LIKELY):
        try:
            Chain.of(tuple(defenses), kind)
        except ConfigError:
            continue
        return kind
    return main
