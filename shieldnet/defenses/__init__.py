"""The defenses, one per file."""

from shieldnet.defenses.base import Defense
from shieldnet.defenses.chain import Chain
from shieldnet.defenses.clipping import ClipNorm, ClipRange
from shieldnet.defenses.coarsening import Coarsen
from shieldnet.defenses.conversions import Center, Log, Softmax, Temperature
from shieldnet.defenses.keyed_noise import KeyedNoise
from shieldnet.defenses.labels import Argmax, Confidence, Label
from shieldnet.defenses.noise import GaussianNoise, LaplaceNoise
from shieldnet.defenses.randomized_response import PermuteAndFlip, RandomizedResponse
from shieldnet.defenses.rounding import Round, RoundTo
from shieldnet.defenses.signs import Sign
from shieldnet.defenses.top_k import TopK

DEFENSES: dict[str, type[Defense]] = {
    kind.__name__: kind
    for kind in (
        ClipNorm,
        ClipRange,
        Coarsen,
        Confidence,
        GaussianNoise,
        KeyedNoise,
        Label,
        LaplaceNoise,
        PermuteAndFlip,
        RandomizedResponse,
        Round,
        RoundTo,
        Sign,
        Temperature,
        TopK,
    )
}
"""Every defense by its name, for the contract test and the TOML reader."""

CONVERSIONS: tuple[type[Defense], ...] = (Softmax, Log, Center, Argmax)
"""Conversions between kinds that the Shield inserts."""

__all__ = [
    "CONVERSIONS",
    "DEFENSES",
    "Argmax",
    "Center",
    "Chain",
    "ClipNorm",
    "ClipRange",
    "Coarsen",
    "Confidence",
    "Defense",
    "GaussianNoise",
    "KeyedNoise",
    "Label",
    "LaplaceNoise",
    "Log",
    "PermuteAndFlip",
    "RandomizedResponse",
    "Round",
    "RoundTo",
    "Sign",
    "Softmax",
    "Temperature",
    "TopK",
]
