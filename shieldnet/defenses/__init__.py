"""The defenses, one idea a file."""

from shieldnet.defenses.base import Defense
from shieldnet.defenses.clipping import ClipNorm
from shieldnet.defenses.labels import Argmax, Confidence, Label
from shieldnet.defenses.noise import GaussianNoise
from shieldnet.defenses.rounding import Round
from shieldnet.defenses.scale import Log, Softmax, Temperature
from shieldnet.defenses.truncation import TopK

DEFENSES: dict[str, type[Defense]] = {
    kind.__name__: kind
    for kind in (ClipNorm, Confidence, GaussianNoise, Label, Round, Temperature, TopK)
}
"""Every defense that a user names, by its name; the contract test and the TOML reader use it."""

CONVERSIONS: tuple[type[Defense], ...] = (Softmax, Log, Argmax)
"""What the Shield inserts between kinds."""

__all__ = [
    "CONVERSIONS",
    "DEFENSES",
    "Argmax",
    "ClipNorm",
    "Confidence",
    "Defense",
    "GaussianNoise",
    "Label",
    "Log",
    "Round",
    "Softmax",
    "Temperature",
    "TopK",
]
